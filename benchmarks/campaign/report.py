"""benchmarks/results/campaign.md, a section for each part of the campaign; writing one leaves the others as they are."""

from __future__ import annotations

import datetime
import platform
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

OUT = Path(__file__).parents[1] / "results/campaign.md"
TITLE = """# A campaign against the program

Each section names the command that wrote it. Seeds make every attempt again.
"""
_TOOLS = ("torch", "onnxruntime", "pillow", "tokenizers")


def write(
    name: str, head: Sequence[str], rows: Sequence[Sequence[Any]], *, about: str, out: Path = OUT, title: str = TITLE,
    command: str = "",
) -> None:  # fmt: skip
    """Replace the section of that name, or add it.  command: what to print in place of what was typed."""
    versions = ", ".join(f"{tool} {metadata.version(tool)}" for tool in _TOOLS)
    command = command or " ".join(["python -m", _module(), *sys.argv[1:]])
    section = f"## {name}\n\n{about} `{command}`, {datetime.date.today()}, Python {platform.python_version()}, {versions}.\n\n"
    section += "".join(f"| {' | '.join(map(str, row))} |\n" for row in [head, ["---"] * len(head), *rows])
    text = out.read_text("utf-8") if out.is_file() else title
    others = [part for part in re.split(r"(?m)^(?=## )", text) if not part.startswith(f"## {name}\n")]
    out.write_text("\n".join(part.strip("\n") + "\n" for part in [*others, section]), "utf-8")


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec is not None else Path(sys.argv[0]).name

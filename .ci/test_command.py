"""Prints the one-line test command that README documents, so that CI cannot run anything else.

The command is the only line of the fenced block that follows the marker `<!-- test-command -->`.
Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

MARKER = "<!-- test-command -->"
_BLOCK = re.compile(re.escape(MARKER) + r"\s*\n```[a-z]*\n(?P<body>.*?)\n```", re.DOTALL)


def extract_command(text: str) -> str:
    """Markdown -> the command. Raises ValueError unless there is one marker with one command line under it."""
    if (markers := text.count(MARKER)) != 1:
        raise ValueError(f"expected one {MARKER}, found {markers}")
    block = _BLOCK.search(text)
    if block is None:
        raise ValueError(f"no fenced block follows {MARKER}")
    lines = [line.strip() for line in block["body"].splitlines() if line.strip()]
    if len(lines) != 1 or lines[0].endswith("\\"):
        raise ValueError(f"the block after {MARKER} must hold one line, found {len(lines)}")
    if not lines[0].startswith("python3 "):
        raise ValueError(f"the command after {MARKER} must start from bare python3: {lines[0]!r}")
    return lines[0]


if __name__ == "__main__":
    try:
        print(extract_command(Path(sys.argv[1]).read_text(encoding="utf-8")))  # noqa: T201 - printing is its job
    except (OSError, ValueError) as error:
        sys.exit(f"error: {sys.argv[1]}: {error}")

"""Where the embedded bundle lies, and the name by which commands ask for it."""

from __future__ import annotations

import os
from pathlib import Path

NANO = Path(__file__).parents[1] / "nano"
EMBEDDED = "nano"
"""The embedded bundle's name where a command asks for a folder; write ./nano for a folder of that name."""


def bundle_folder(name: str | os.PathLike[str]) -> Path:
    """The folder that `name` stands for."""
    return NANO if os.fspath(name) == EMBEDDED else Path(name)

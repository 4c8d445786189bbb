"""The command line as a process of its own, from this checkout, whatever is installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
VLM_EDGE = (sys.executable, "-m", "vlm_edge")


def in_checkout(folder: Path, **more: str) -> dict[str, Any]:
    """Options for subprocess: work in `folder`, import the package from here."""
    return {"cwd": folder, "env": {**os.environ, "PYTHONPATH": str(ROOT), **more}}

"""Files that a command writes for its user: whole or not at all, and an error with a remedy where there is no room."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vlm_edge.core.bundle import atomic_write
from vlm_edge.errors import BadInput


@contextmanager
def written(path: Path, *, named: str = "", remedy: str = "check the folder and the disk") -> Iterator[BinaryIO]:
    """A stream whose content replaces the file at the end of the block; raises BadInput where it cannot be written.

    named: what the message calls the file, in place of its path.
    """
    try:
        with atomic_write(path) as stream:
            yield stream
    except OSError as cause:
        raise BadInput(f"{named or path} cannot be written: {cause}", remedy=remedy) from cause

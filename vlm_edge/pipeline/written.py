"""Files that a command writes for its user: whole or not at all, and an error with a remedy where there is no room."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vlm_edge.core.bundle import atomic_write
from vlm_edge.errors import BadInput


def check_output(path: Path, suffixes: Sequence[str], *, named: str = "", example: str = "plan") -> None:
    """Raise BadInput unless a file with one of these suffixes can be written there: before the work, not behind it.

    named: what messages call the file, in place of its path.  example: a name for it, without suffix.
    """
    name, example = named or str(path), f"{example}{suffixes[0]}"
    if path.suffix.lower() not in suffixes:
        raise BadInput(f"{name} does not end in {' or '.join(suffixes)}", remedy=f"give it a name such as {example}")
    if path.is_dir():
        raise BadInput(f"{name} is a folder", remedy=f"name a file, such as {path / example}")
    if not path.parent.is_dir():
        raise BadInput(f"{name}: there is no folder {path.parent}", remedy=f"make it first: mkdir -p '{path.parent}'")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise BadInput(f"{name}: nothing can be written in {path.parent}", remedy="name a folder that you may write")


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

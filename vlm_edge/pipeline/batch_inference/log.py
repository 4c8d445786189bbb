"""The file that `batch` writes: one flushed line a row, so that whatever ends a run, the next one goes on behind it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.bundle import atomic_write
from vlm_edge.core.file_lock import lock_exclusively
from vlm_edge.errors import BadInput

_HEAD = b'{"row": '
"""How every line begins: what tells a line that was cut short from a file that is something else."""
_ANOTHER = "name another OUT"


class BatchLog:
    """Rows that are done, by key, and the open file that more are appended to.

    Of a row no more is held than its key, 8 bytes. Between `open` and the block's end no other process writes there.
    """

    def __init__(self, path: Path, stream: BinaryIO, keys: NDArray[np.uint64], failed: int) -> None:
        self.path = path
        self.done = len(keys)
        self.failed = failed
        self._stream = stream
        self._keys = np.sort(keys)
        self._end = stream.seek(0, os.SEEK_END)

    @staticmethod
    @contextmanager
    def open(path: Path, *, retry_failed: bool = False) -> Iterator[BatchLog]:
        """Read what is there, drop a last line that was cut short, and lock the file.

        retry_failed: take rows that failed out, so that they are asked again.
        Raises BadInput for a file that is no such log, that another process writes, or that cannot be written.
        """
        created = not path.exists()
        try:
            stream = path.open("ab+", buffering=0)
        except OSError as cause:
            raise _unusable(path, cause) from cause
        with stream:
            _lock(stream, path)
            try:
                _drop_torn_line(path, stream)
                keys, failed = _read(path)
                if failed and retry_failed:
                    _without_failures(path)
                    with path.open("ab+", buffering=0) as rewritten:
                        _lock(rewritten, path)
                        yield BatchLog(path, rewritten, *_read(path))
                else:
                    yield BatchLog(path, stream, keys, failed)
            finally:
                if created and path.exists() and not path.stat().st_size:  # nothing could be asked
                    path.unlink()

    def holds(self, key: int) -> bool:
        """Whether a row was done when the log was opened."""
        at = int(np.searchsorted(self._keys, np.uint64(key)))
        return at < len(self._keys) and int(self._keys[at]) == key

    def add(self, number: int, key: int, content: Mapping[str, Any]) -> None:
        """Append a row and wait until the disk has it; raises BadInput, the file then being what it was before."""
        row = {"row": number, "key": f"{key:016x}", **content}
        line = json.dumps(row, ensure_ascii=False).encode(errors="replace") + b"\n"
        try:
            _write(self._stream, line)
            os.fsync(self._stream.fileno())
        except OSError as cause:
            with suppress(OSError):
                self._stream.truncate(self._end)
            raise _unusable(self.path, cause) from cause
        self._end += len(line)


def _write(stream: BinaryIO, line: bytes) -> None:
    """All of it: a full disk may take a part, and says so only at the next attempt."""
    while line:
        line = line[stream.write(line) :]


def _lock(stream: BinaryIO, path: Path) -> None:
    if not lock_exclusively(stream.fileno()):
        raise BadInput(f"another batch is writing {path}", remedy=f"wait until it has ended, or {_ANOTHER}")


def _drop_torn_line(path: Path, stream: BinaryIO) -> None:
    """Cut the file behind its last line break; what stands there must be the beginning of a row."""
    try:
        size = stream.seek(0, os.SEEK_END)
        end, tail = size, b""
        while end and b"\n" not in tail:
            begin = max(0, end - (1 << 16))
            stream.seek(begin)
            tail, end = stream.read(end - begin) + tail, begin
        torn = tail.rpartition(b"\n")[2]
        if not torn:
            return
        if not (torn.startswith(_HEAD) or _HEAD.startswith(torn)):
            raise BadInput(f"{path} is no output of a batch", remedy=_ANOTHER)
        stream.truncate(size - len(torn))
        os.fsync(stream.fileno())
    except OSError as cause:
        raise _unusable(path, cause) from cause


def _read(path: Path) -> tuple[NDArray[np.uint64], int]:
    """Keys of all rows, and how many of them failed."""
    keys: list[int] = []
    chunks, failed = [], 0
    for number, line in _rows(path):
        try:
            row = json.loads(line)
            keys.append(int(row["key"], 16))
            failed += "error" in row
        except (ValueError, KeyError, TypeError, RecursionError) as cause:
            raise BadInput(f"{path}:{number} is no row of a batch", remedy=_ANOTHER) from cause
        if len(keys) == 1 << 16:
            chunks.append(np.array(keys, np.uint64))
            keys.clear()
    found = np.concatenate([*chunks, np.array(keys, np.uint64)])
    if len(np.unique(found)) != len(found):
        raise BadInput(f"{path} holds a row twice", remedy=_ANOTHER)
    return found, failed


def _rows(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.startswith(_HEAD):
                    raise BadInput(f"{path}:{number} is no row of a batch", remedy=_ANOTHER)
                yield number, line
    except OSError as cause:
        raise _unusable(path, cause) from cause


def _without_failures(path: Path) -> None:
    try:
        with atomic_write(path) as stream:
            for _, line in _rows(path):
                if "error" not in json.loads(line):
                    stream.write(line)
    except OSError as cause:
        raise _unusable(path, cause) from cause


def _unusable(path: Path, cause: OSError) -> BadInput:
    return BadInput(f"{path} cannot be written: {cause.strerror or cause}", remedy=f"make room for it, or {_ANOTHER}")

"""Rows of `batch`: a JSON Lines file or a folder of images, read one by one however many there are."""

from __future__ import annotations

import errno
import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar

from vlm_edge.core.load import parse
from vlm_edge.errors import BadInput

FORM = '{"image": "page.png", "question": "what is the total?"}, one a line'
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm")
MAX_LINE_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Row:
    """One question. number: its line in the file, or its place in the folder.  images: relative to the file's folder.

    identity: what tells it from other rows of the input.  problem, fix: why it cannot be asked; then nothing else is known.
    """

    number: int
    id: str
    identity: str
    images: tuple[str, ...] = ()
    question: str = ""
    problem: str = ""
    fix: str = ""


@dataclass(frozen=True)
class _Line:
    """A line of the file: either `image` or `images`, and an `id` of the user's own."""

    question: str = ""
    image: str = ""
    images: tuple[str, ...] = ()
    id: str | int | None = None
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


@dataclass(frozen=True)
class BatchInput:
    """All rows of a file or folder, as often as they are asked for; no more than one is held.

    question: for rows, and for images of a folder, that have none of their own.
    """

    path: Path
    question: str = ""

    @property
    def root(self) -> Path:
        """The folder that images are relative to, absolute."""
        return (self.path if self.path.is_dir() else self.path.parent).absolute()

    def __iter__(self) -> Iterator[Row]:
        """Raises BadInput where nothing can be read; a line that is no row is a Row with a problem."""
        if self.path.is_dir():
            yield from self._images()
            return
        if _is_something_else(self.path):
            raise BadInput(
                f"{self.path} is no file, and rows are read more than once", remedy="save them to a file first"
            )
        try:
            with self.path.open("rb") as stream:
                for number, line in _lines(stream):
                    yield self._row(number, line)
        except OSError as cause:
            raise BadInput(
                f"{self.path} cannot be read: {cause}", remedy="name a JSON Lines file or a folder"
            ) from cause

    def _images(self) -> Iterator[Row]:
        if not self.question.strip():
            raise BadInput(
                f"{self.path} is a folder, and no question is given", remedy='add --question "what is the total?"'
            )
        names = sorted(entry.name for entry in self.path.iterdir() if entry.suffix.lower() in SUFFIXES)
        for number, name in enumerate((name for name in names if not name.startswith(".")), start=1):
            yield Row(number, name, json.dumps([name, self.question]), (name,), self.question)

    def _row(self, number: int, line: bytes | None) -> Row:
        where = f"{self.path}:{number}"
        try:
            read = self._checked(line, where)
        except BadInput as cause:
            return Row(number, str(number), json.dumps([number, repr(line)]), problem=cause.message, fix=cause.remedy)
        images = read.images or (read.image,)
        name = str(number) if read.id is None else str(read.id)
        question = read.question or self.question
        return Row(number, name, json.dumps([number, name, images, question]), images, question)

    def _checked(self, line: bytes | None, where: str) -> _Line:
        if line is None:
            raise BadInput(f"{where}: longer than {MAX_LINE_BYTES >> 20} MiB", remedy=f"write {FORM}")
        try:
            data = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as cause:
            raise BadInput(f"{where}: not valid JSON: {cause}", remedy=f"write {FORM}") from cause
        read = parse(data, _Line, where)
        if bool(read.image) == bool(read.images):
            raise BadInput(f"{where}: a row has either image or images", remedy=f"write {FORM}")
        if not (read.question or self.question).strip():
            raise BadInput(
                f"{where}: the row has no question", remedy="fill it in, or give one for all with --question"
            )
        for name in read.images or (read.image,):
            if not name.strip() or _is_something_else(self.root / name):
                raise BadInput(f"{where}: {name[:80]!r} is no file", remedy="name an image")
        return read


def _is_something_else(path: Path) -> bool:
    """Whether a folder, a pipe or a device lies there, or no file can have that name; one that is missing is told later."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except ValueError:
        return True
    except OSError as cause:
        return cause.errno == errno.ENAMETOOLONG


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines that are not blank; None for one beyond MAX_LINE_BYTES, of which no more than that is held."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(_BOM)
        if len(line) > MAX_LINE_BYTES:
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE_BYTES)
            yield number, None
        elif line.strip():
            yield number, line

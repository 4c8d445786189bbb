"""Calibration data as people give it: a JSON Lines file, or a folder of images and texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vlm_edge.core.load import parse
from vlm_edge.errors import BadInput

FORM = 'one object a line: {"image": "page.png", "text": "what is the total?", "answer": "12.50"}; image and answer may be absent'
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
DESCRIBE = "Describe this image."
"""Asked about an image of a folder that has no text beside it."""
_MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class _Row:
    text: str
    image: str | None = None
    answer: str = ""
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


@dataclass(frozen=True)
class Sample:
    """One text, about an image or not, with an answer that follows it in the prompt.  where: for messages."""

    text: str
    image: Path | None
    answer: str
    where: str


def read_samples(path: Path, *, limit: int) -> tuple[Sample, ...]:
    """The first `limit` samples of a JSON Lines file (image paths relative to it) or of a folder.

    A folder gives the samples of its *.jsonl files; or else every image, with NAME.txt beside it as its text, and every other
    .txt file as text alone, by name.
    Raises BadInput with file and line for what is missing, empty or malformed.
    """
    try:
        samples = _of_folder(path) if path.is_dir() else _of_file(path)
    except OSError as cause:
        raise BadInput(f"{path} cannot be read: {cause}", remedy="name a JSON Lines file or a folder") from cause
    if not samples:
        raise BadInput(f"{path} holds no calibration samples", remedy=f"write {FORM}")
    return tuple(samples[:limit])


def _of_folder(folder: Path) -> list[Sample]:
    if tables := sorted(folder.glob("*.jsonl")):
        return [sample for table in tables for sample in _of_file(table)]
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    images = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    named = {image.stem for image in images}
    samples = []
    for path in paths:
        if path in images:
            text = path.with_suffix(".txt")
            samples.append(Sample(_text(text) if text.is_file() else DESCRIBE, path, "", str(path)))
        elif path.suffix.lower() == ".txt" and path.stem not in named:
            samples.append(Sample(_text(path), None, "", str(path)))
    return samples


def _of_file(path: Path) -> list[Sample]:
    samples = []
    for number, line in enumerate(_text(path, empty_is_fine=True).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as cause:
            raise BadInput(f"{where}: not valid JSON: {cause}", remedy=f"write {FORM}") from cause
        row: _Row = parse(data, _Row, where)
        if not row.text.strip():
            raise BadInput(f"{where}: text is empty", remedy="fill it in, or leave the line out")
        image = None if row.image is None else path.parent / row.image
        if image is not None and not image.is_file():
            raise BadInput(f"{where}: there is no image {image}", remedy="name it relative to the file that lists it")
        samples.append(Sample(row.text, image, row.answer, where))
    return samples


def _text(path: Path, *, empty_is_fine: bool = False) -> str:
    if path.stat().st_size > _MAX_BYTES:
        raise BadInput(f"{path} is too large for a calibration file", remedy="a few hundred samples are enough")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as cause:
        line = data[: cause.start].count(b"\n") + 1
        raise BadInput(f"{path}:{line}: not UTF-8", remedy="save the file as UTF-8") from cause
    if not empty_is_fine and not text.strip():
        raise BadInput(f"{path} is empty", remedy="fill it in, or remove it")
    return text


def digest(samples: Sequence[Sample]) -> str:
    """SHA-256 of all texts, answers and image files; raises BadInput for an image that cannot be read."""
    found = hashlib.sha256()
    for sample in samples:
        try:
            image = b"" if sample.image is None else hashlib.sha256(sample.image.read_bytes()).digest()
        except OSError as cause:
            raise BadInput(f"{sample.where}: {cause}", remedy="check the image, or leave the line out") from cause
        found.update(json.dumps([sample.text, sample.answer]).encode() + image)
    return found.hexdigest()

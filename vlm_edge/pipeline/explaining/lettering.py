"""Text in pictures: a font that has the letters, and lines that fit a width."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import chain, islice
from typing import cast

from PIL import ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
SYSTEM_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "arial.ttf", "Lato-Regular.ttf")
"""Tried in this order for text beyond ASCII, which is all that Pillow's own font has."""
ELLIPSIS = "..."
_NO_CHARACTER = "\uffff"


class Letters:
    """One line of text. Letters that its font lacks lose their accents or, without any, show as crossed boxes."""

    def __init__(self, text: str, size_px: int) -> None:
        self._font, self.text = _fitting(_one_line(text), size_px)
        self.width = round(self._font.getlength(self.text)) + 1

    def draw(self, draw: ImageDraw.ImageDraw, at: tuple[int, int], colour: tuple[int, int, int]) -> None:
        """With its upper left corner at (x, y)."""
        draw.text(at, self.text, fill=colour, font=self._font)


def wrap(text: str, size_px: int, width_px: int, *, max_lines: int) -> list[Letters]:
    """Lines of at most width_px, broken between words and, where a word is longer, inside it.

    What does not fit into max_lines is cut off, with an ellipsis in its place.
    """
    paragraphs = (_broken(_one_line(paragraph), size_px, width_px) for paragraph in text.splitlines() or [""])
    lines = list(islice(chain.from_iterable(paragraphs), max_lines + 1))
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], _cut(lines[max_lines - 1] + ELLIPSIS, size_px, width_px)]
    return [Letters(line, size_px) for line in lines]


def shortened(text: str, size_px: int, width_px: int) -> Letters:
    """A line of at most width_px, with an ellipsis for what is left out."""
    return Letters(_cut(_one_line(text), size_px, width_px), size_px)


def _broken(text: str, size_px: int, width_px: int) -> Iterator[str]:
    font, text = _fitting(text, size_px)
    line = ""
    for word in text.split(" "):
        candidate = f"{line} {word}" if line else word
        if font.getlength(candidate) <= width_px:
            line = candidate
            continue
        if line:
            yield line
        line = word
        while (fits := _longest(font, line, width_px)) < len(line):
            yield line[:fits]
            line = line[fits:]
    yield line


def _cut(text: str, size_px: int, width_px: int) -> str:
    font, text = _fitting(text, size_px)
    if _longest(font, text, width_px) >= len(text):
        return text
    return text[: _longest(font, text, width_px - font.getlength(ELLIPSIS))].rstrip() + ELLIPSIS


def _longest(font: Font, text: str, width_px: float) -> int:
    """How many characters fit, at least one; no more than pixels, so that a word of thousands is not measured whole."""
    fits, too_many = 1, min(len(text), max(1, int(width_px))) + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if font.getlength(text[:middle]) <= width_px else (fits, middle)
    return fits


def _one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _fitting(text: str, size_px: int) -> tuple[Font, str]:
    """The font that has the most of the letters, the first of equals; the rest lose their accents where that helps."""
    letters = set(text)
    known = [name for name in (None, *SYSTEM_FONTS) if _font(name, size_px) is not None]
    name = min(known, key=lambda name: sum(not _has(name, letter) for letter in letters))
    plain = {ord(letter): _plain(name, letter) for letter in letters if not _has(name, letter)}
    return cast("Font", _font(name, size_px)), text.translate(plain)


def _plain(name: str | None, letter: str) -> str:
    parts = unicodedata.normalize("NFKD", letter)
    return "".join(part for part in parts if _has(name, part)) or letter


@cache
def _font(name: str | None, size_px: int) -> Font | None:
    try:
        return ImageFont.truetype(name, size_px) if name else ImageFont.load_default(size_px)
    except OSError:
        return None


@cache
def _has(name: str | None, letter: str) -> bool:
    """Whether a font has a glyph: one that it lacks is drawn like a code point that is no character."""
    font = _font(name, 20)
    return font is not None and (letter == " " or bytes(font.getmask(letter)) != bytes(font.getmask(_NO_CHARACTER)))

"""Boxes and points that an answer names -> pixels of the source image.

The text is a model's: it may end in the middle of a box, hold a million of them, or numbers that are none. Every pattern is
bounded, so that time grows with the text's length and no faster.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vlm_edge.core.dialects import Dialect

Rect = tuple[float, float, float, float]


@dataclass(frozen=True)
class LabelledBox:
    """A box in source pixels and the words that name it; clipped: it reached past the view."""

    label: str
    box: tuple[int, int, int, int]
    clipped: bool = False


@dataclass(frozen=True)
class LabelledPoint:
    """A point in source pixels and the words that name it; clipped: it lay outside the view, and is moved to its edge."""

    label: str
    point: tuple[int, int]
    clipped: bool = False


@dataclass(frozen=True)
class Frames:
    """What coordinates can span.

    image_px: (width, height) of the source.  view: the view of the whole image in source px; it reaches past the image where that
    was padded.  canvas_px: the size that the image was brought to before the encoder saw it.
    """

    image_px: tuple[int, int]
    view: Rect
    canvas_px: tuple[int, int]


@dataclass(frozen=True)
class Place:
    """What stands in the text: x, y of a point or x0, y0, x1, y1 of a box, in the dialect's own units."""

    label: str
    at: tuple[float, ...]


def find_places(
    text: str, dialects: Sequence[Dialect], frames: Frames
) -> tuple[tuple[LabelledBox, ...], tuple[LabelledPoint, ...]]:
    """Boxes and points of an answer in the first dialect that finds any.

    Corners are put in order. What reaches past the view, or the image where the view is larger, is clipped and says so.
    """
    for dialect in dialects:
        places = PARSERS[dialect.syntax](text)
        if places:
            found = [_placed(place, dialect, frames) for place in places]
            boxes = tuple(item for item in found if isinstance(item, LabelledBox))
            return boxes, tuple(item for item in found if isinstance(item, LabelledPoint))
    return (), ()


def _placed(place: Place, dialect: Dialect, frames: Frames) -> LabelledBox | LabelledPoint:
    width, height = frames.image_px
    frame: Rect = frames.view if dialect.frame == "view" else (0, 0, width, height)
    scale = frames.canvas_px if dialect.frame == "canvas" else (dialect.scale, dialect.scale)
    at, clipped = [], False
    for i, value in enumerate(place.at):
        axis = i % 2
        begin, end, length = frame[axis], frame[axis + 2], frames.image_px[axis]
        exact = round(begin + value / scale[axis] * (end - begin))
        least, most = (min(max(edge, 0), length) for edge in (math.floor(begin), math.ceil(end)))
        kept = min(max(exact, least), most)
        clipped |= kept != exact
        at.append(kept)
    if len(at) == 2:
        return LabelledPoint(place.label, (at[0], at[1]), clipped)
    x0, y0, x1, y1 = at
    return LabelledBox(place.label, (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), clipped)


_TAG = re.compile(r"<(box|point)>([^<]{1,4000})</\1>|<\|box_start\|>([^<]{1,4000})<\|box_end\|>")
_INTEGER = re.compile(r"\d+")
_FORMS = {
    4: re.compile(r"n,n,n,n|\(n,n\),\(n,n\)|\[n,n,n,n\]|\[\[n,n,n,n\](?:,\[n,n,n,n\])*\]"),
    2: re.compile(r"n,n|\(n,n\)|\[n,n\]|\[\[n,n\](?:,\[n,n\])*\]"),
}
_REFERENCE = re.compile(r"</ref>|<\|object_ref_end\|>")
_MOST_DIGITS = 4


def _tags(text: str) -> list[Place]:
    found, start = [], 0
    for match in _TAG.finditer(text):
        # Not part of the pattern: a search that begins with "anything" takes the square of the text's length.
        label = re.split("[<>]", _REFERENCE.sub("", text[start : match.start()]))[-1].strip()
        start = match.end()
        size = 2 if match[1] == "point" else 4
        found += [Place(label, at) for at in _groups(match[2] or match[3], size)]
    return found


def _groups(body: str, size: int) -> Iterator[tuple[float, ...]]:
    """Whole numbers of a body in twos or fours; nothing where it has another form, such as a sign or a fifth number."""
    numbers = _INTEGER.findall(body)
    form = _INTEGER.sub("n", "".join(body.split()))
    if _FORMS[size].fullmatch(form) and all(len(number) <= _MOST_DIGITS for number in numbers):
        for i in range(0, len(numbers), size):
            yield tuple(map(float, numbers[i : i + size]))


_N = r"\s{0,4}(\d{1,4})\s{0,4}"
_PAIRS = re.compile(rf"\({_N},{_N}\)\s{{0,4}},\s{{0,4}}\({_N},{_N}\)")
_BRACKETS = re.compile(r"\[\[[\d,\s]{7,99}\](?:\s{0,4},\s{0,4}\[[\d,\s]{7,99}\]){0,99}\s{0,4}\]")
_FLOAT = r"\s{0,4}(-?\d{0,3}\.\d{1,9}|-?[01])\s{0,4}"
_FLOATS = re.compile(rf"\[{_FLOAT},{_FLOAT},{_FLOAT},{_FLOAT}\]")


def _labelled(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[str, re.Match[str]]]:
    """Matches, each with the rest of the line before it."""
    start = 0
    for match in pattern.finditer(text):
        line = text[start : match.start()].rpartition("\n")[2]
        start = match.end()
        yield line.strip(" \t,;:"), match


def _pairs(text: str) -> list[Place]:
    return [Place(label, tuple(map(float, match.groups()))) for label, match in _labelled(text, _PAIRS)]


def _brackets(text: str) -> list[Place]:
    return [Place(label, at) for label, match in _labelled(text, _BRACKETS) for at in _groups(match[0], 4)]


def _floats(text: str) -> list[Place]:
    found = _labelled(text, _FLOATS)
    return [
        Place(label, tuple(map(float, m.groups()))) for label, m in found if any("." in part for part in m.groups())
    ]


_OBJECT = re.compile(r"\{[^{}]{1,4000}\}")
_KEYS: Mapping[str, int] = {"bbox_2d": 4, "point_2d": 2}
_MOST_PX = 1 << 24


def _json(text: str) -> list[Place]:
    """Every innermost object with a place, so that a list that was cut short loses its last entry alone."""
    found = []
    for match in _OBJECT.finditer(text):
        try:
            entry = json.loads(match[0])
        except (ValueError, RecursionError):
            continue
        for key, size in _KEYS.items():
            at = entry.get(key)
            if isinstance(at, list) and len(at) == size and all(_is_number(value) for value in at):
                found.append(Place(str(entry.get("label") or "")[:200], tuple(map(float, at))))
    return found


def _is_number(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MOST_PX
    )  # NaN is refused too


_LOCATIONS = re.compile(r"<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})>(?:<seg\d{3}>|\s){0,64}([^;<]{0,200})")


def _locations(text: str) -> list[Place]:
    """Rows stand before columns."""
    found = []
    for match in _LOCATIONS.finditer(text):
        y0, x0, y1, x1 = map(float, match.groups()[:4])
        found.append(Place(match[5].strip(), (x0, y0, x1, y1)))
    return found


_POINTS = re.compile(r"<points?\s([^<>]{1,8000})>([^<]{0,400})")
_ATTRIBUTE = re.compile(r"\b([xy])(\d{0,4})\s?=\s?\"\s?(-?\d{1,4}(?:\.\d{1,9})?)\s?\"")
_ALT = re.compile(r"\balt\s?=\s?\"([^\"]{0,400})\"")


def _points(text: str) -> list[Place]:
    found = []
    for match in _POINTS.finditer(text):
        alt = _ALT.search(match[1])
        label = (match[2].strip() or (alt[1] if alt else "")).strip()
        values = {(axis, number): float(value) for axis, number, value in _ATTRIBUTE.findall(match[1])}
        found += [
            Place(label, (value, values["y", number]))
            for (axis, number), value in values.items()
            if axis == "x" and ("y", number) in values
        ]
    return found


PARSERS: Mapping[str, Callable[[str], list[Place]]] = {
    "tags": _tags, "pairs": _pairs, "brackets": _brackets, "floats": _floats, "json": _json, "locations": _locations,
    "points": _points,
}  # fmt: skip

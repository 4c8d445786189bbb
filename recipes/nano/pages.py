"""Draws the pages that the nano model is trained and tested on, and knows where everything on them is.

A page is 448 to 1344 px a side, or larger where a caller asks for that, which training never does. It holds cards of
`key: value` lines in dark ink, coloured shapes, and body text in light ink that no question asks about; the body text
alone often covers more than six 112 px tiles can show.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .fonts import TYPEFACES, Typeface, load_font
from .vocabulary import CHARACTERS, COLORS, KEYS, MAX_COUNT, SHAPES

VIEW_PX = 112
MIN_PAGE_PX, MAX_PAGE_PX = 448, 1344
LETTERS = CHARACTERS[12:]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Line:
    """One `key: value` line: its box, and the horizontal centre of each of the value's characters, in page px."""

    key: str
    value: str
    box: Box
    centers: tuple[float, ...]
    center_y: float
    typeface: str
    size_px: int

    @property
    def width_px(self) -> float:
        return self.box[2] - self.box[0]


@dataclass(frozen=True)
class Shape:
    kind: str
    color: str
    box: Box


@dataclass(frozen=True)
class Page:
    """RGB image uint8 [H, W, 3]; `text_px2` is the area of all text, cards and body text together."""

    image: np.ndarray
    lines: tuple[Line, ...]
    shapes: tuple[Shape, ...]
    text_px2: float

    @property
    def width(self) -> int:
        return int(self.image.shape[1])

    @property
    def height(self) -> int:
        return int(self.image.shape[0])


@dataclass(frozen=True)
class Style:
    """What a caller may pin; everything else is drawn from the random state."""

    max_cards: int = 6
    max_lines: int = 4
    long_lines: float = 0.18
    held_out_typefaces: bool = False
    min_side_px: int = MIN_PAGE_PX
    max_side_px: int = MAX_PAGE_PX


def _digits(rng: np.random.Generator, count: int) -> str:
    return "".join(str(d) for d in rng.integers(0, 10, count))


def _letters(rng: np.random.Generator, count: int) -> str:
    return "".join(LETTERS[i] for i in rng.integers(0, 26, count))


def random_value(rng: np.random.Generator, key: str, *, long: bool = False) -> str:
    """A value in the usual form of its key, or (a third of the time) of any form, so that only reading helps."""
    if long:
        parts = [
            (_digits if rng.random() < 0.6 else _letters)(rng, int(rng.integers(2, 6)))
            for _ in range(int(rng.integers(3, 5)))
        ]
        return "-".join(parts) if rng.random() < 0.7 else ".".join(parts)
    forms = {
        "total": lambda: f"{_digits(rng, int(rng.integers(1, 5)))}.{_digits(rng, 2)}",
        "date": lambda: f"{_digits(rng, 4)}-{_digits(rng, 2)}-{_digits(rng, 2)}",
        "id": lambda: _letters(rng, int(rng.integers(1, 4))) + _digits(rng, int(rng.integers(1, 5))),
        "name": lambda: _letters(rng, int(rng.integers(3, 9))),
        "tax": lambda: f"{_digits(rng, int(rng.integers(1, 3)))}.{_digits(rng, int(rng.integers(1, 3)))}",
        "qty": lambda: _digits(rng, int(rng.integers(1, 5))),
        "code": lambda: "".join(CHARACTERS[i] for i in rng.integers(0, len(CHARACTERS), int(rng.integers(3, 8)))),
        "ref": lambda: f"{_letters(rng, 2)}-{_digits(rng, int(rng.integers(2, 6)))}",
        "phone": lambda: f"{_digits(rng, 3)}-{_digits(rng, 4)}",
        "time": lambda: f"{_digits(rng, 2)}.{_digits(rng, 2)}",
        "room": lambda: _digits(rng, int(rng.integers(2, 5))),
        "zip": lambda: _digits(rng, 5),
        "gate": lambda: _letters(rng, 1) + _digits(rng, int(rng.integers(1, 3))),
        "seat": lambda: _digits(rng, int(rng.integers(1, 3))) + _letters(rng, 1),
    }
    forms["price"], forms["city"] = forms["total"], forms["name"]
    form = key if rng.random() < 0.67 else list(forms)[int(rng.integers(len(forms)))]
    value = forms[form]()
    return value if value.strip(".-") else _digits(rng, 3)


@functools.cache
def _texture(index: int) -> np.ndarray:
    """A texture int16 [MAX_PAGE_PX, MAX_PAGE_PX] with values in about -100..100."""
    rng = np.random.default_rng(1000 + index)
    side = MAX_PAGE_PX
    kind = index % 6
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    if kind == 0:
        field = rng.normal(0, 40, (side, side))
    elif kind == 1:
        coarse = rng.normal(0, 1, (12, 12)).astype(np.float32)
        field = 50 * np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    elif kind == 2:
        field = 60 * np.sin((x * rng.uniform(-1, 1) + y * rng.uniform(-1, 1)) / rng.uniform(2, 30))
    elif kind == 3:
        field = 100 * (x / side - 0.5) * rng.choice([-1, 1]) + 60 * (y / side - 0.5)
    elif kind == 4:
        step = int(rng.integers(20, 70))
        field = -80.0 * (((x % step) < 1) | ((y % step) < 1))
    else:
        coarse = rng.normal(0, 1, (side // 4, side // 4)).astype(np.float32)
        field = 50 * np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR))
    return np.clip(field, -100, 100).astype(np.int16)


@functools.cache
def _body_text(index: int) -> Image.Image:
    """A block of filler words as a mask (mode L), 620 x 400 px."""
    rng = np.random.default_rng(5000 + index)
    face = TYPEFACES[int(rng.integers(len(TYPEFACES)))]
    size = int(rng.integers(9, 15))
    font = load_font(face.name, size)
    pitch = int(size * rng.uniform(1.15, 1.6))
    mask = Image.new("L", (620, 400), 0)
    draw = ImageDraw.Draw(mask)
    for top in range(0, 400 - pitch, pitch):
        words = [_letters(rng, int(rng.integers(1, 10))) for _ in range(24)]
        words = [w.capitalize() if rng.random() < 0.1 else w for w in words]
        draw.text((0, top), " ".join(words), fill=255, font=font)
    return mask


def background(rng: np.random.Generator, width: int, height: int) -> tuple[np.ndarray, bool]:
    """A plain or textured ground uint8 [height, width, 3], and whether it is dark, so that ink must be light."""
    mood = rng.random()
    if mood < 0.72:
        base = rng.integers(205, 256) + rng.integers(-12, 13, 3)
    elif mood < 0.86:
        base = rng.integers(25, 65) + rng.integers(-12, 13, 3)
    else:
        base = rng.integers(165, 250, 3)
    amplitude = float(rng.choice([0.0, 0.03, 0.06, 0.1, 0.14])) * (0.6 if mood >= 0.72 else 1.0)
    image = np.empty((height, width, 3), np.int16)
    image[:] = np.clip(base, 0, 255).astype(np.int16)
    if amplitude:
        texture = _texture(int(rng.integers(24)))
        # a texture of its own for each size would change every page of training: larger pages mirror it at its edges
        beyond = [(0, max(0, side - MAX_PAGE_PX)) for side in (height, width)]
        texture = np.pad(texture, beyond, mode="reflect")
        top = int(rng.integers(texture.shape[0] - height + 1))
        left = int(rng.integers(texture.shape[1] - width + 1))
        image += (texture[top : top + height, left : left + width] * amplitude).astype(np.int16)[..., None]
    np.clip(image, 0, 255, out=image)
    return image.astype(np.uint8), 0.72 <= mood < 0.86


def _free(box: Box, taken: list[Box], gap: float) -> bool:
    return all(
        box[2] + gap <= other[0] or other[2] + gap <= box[0] or box[3] + gap <= other[1] or other[3] + gap <= box[1]
        for other in taken
    )


def _place(
    rng: np.random.Generator, size: tuple[float, float], page: tuple[int, int], taken: list[Box], gap: float
) -> Box | None:
    width, height = size
    if width >= page[0] or height >= page[1]:
        return None
    for _ in range(20):
        x = float(rng.integers(0, int(page[0] - width)))
        y = float(rng.integers(0, int(page[1] - height)))
        box = (x, y, x + width, y + height)
        if _free(box, taken, gap):
            return box
    return None


def _draw_shape(draw: ImageDraw.ImageDraw, kind: str, box: Box, fill: tuple[int, ...]) -> None:
    x0, y0, x1, y1 = box
    if kind == "circle":
        draw.ellipse(box, fill=fill)
    elif kind == "square":
        draw.rectangle(box, fill=fill)
    elif kind == "triangle":
        draw.polygon([((x0 + x1) / 2, y0), (x1, y1), (x0, y1)], fill=fill)
    else:
        third = 0.33
        w, h = x1 - x0, y1 - y0
        draw.rectangle((x0 + third * w, y0, x1 - third * w, y1), fill=fill)
        draw.rectangle((x0, y0 + third * h, x1, y1 - third * h), fill=fill)


def _place_shapes(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, page: tuple[int, int], dark: bool, taken: list[Box]
) -> list[Shape]:
    shapes: list[Shape] = []
    target = int(rng.integers(0, 7))
    favourite = SHAPES[int(rng.integers(4))]
    for _ in range(target):
        kind = favourite if rng.random() < 0.4 else SHAPES[int(rng.integers(4))]
        if sum(s.kind == kind for s in shapes) >= MAX_COUNT:
            continue
        width = rng.uniform(0.1, 0.2) * page[0]
        height = np.clip(width * rng.uniform(0.85, 1.15), 0.1 * page[1], 0.22 * page[1])
        box = _place(rng, (round(width), round(float(height))), page, taken, 0.02 * min(page))
        if box is None:
            continue
        colors = [c for c in COLORS if not (dark and c == "black")]
        color = colors[int(rng.integers(len(colors)))]
        fill = tuple(int(v) for v in np.clip(np.array(COLORS[color]) + rng.integers(-16, 17, 3), 0, 255))
        _draw_shape(draw, kind, box, fill)
        shapes.append(Shape(kind, color, box))
        taken.append(box)
    return shapes


@dataclass(frozen=True)
class _Row:
    key: str
    key_text: str
    value: str
    value_dx: float
    width: float


def _card_rows(rng: np.random.Generator, keys: list[str], font, long: bool) -> list[_Row]:
    separator = str(rng.choice([": ", ":", ":  ", " = ", "  "], p=[0.55, 0.1, 0.1, 0.1, 0.15]))
    case = rng.choice(["lower", "title", "upper"], p=[0.55, 0.25, 0.2])
    limit = 105 if not long else 205
    rows: list[_Row] = []
    for key in keys:
        key_text = {"lower": key, "title": key.capitalize(), "upper": key.upper()}[str(case)] + separator
        for _ in range(8):
            value = random_value(rng, key, long=long)
            start = font.getlength(key_text)
            width = start + font.getlength(value)
            if width <= limit and not (long and width < 118) and is_readable(font, value):
                rows.append(_Row(key, key_text, value, start, width))
                break
    column = max((row.value_dx for row in rows), default=0.0)
    if rng.random() < 0.3 and all(column + r.width - r.value_dx <= limit for r in rows):
        rows = [_Row(r.key, r.key_text, r.value, column, column + r.width - r.value_dx) for r in rows]
    return rows


def is_readable(font, value: str) -> bool:
    """At most three character centres fall within any 14 px: the densest text that a patch has slots for."""
    centers = [(font.getlength(value[:i]) + font.getlength(value[: i + 1])) / 2 for i in range(len(value))]
    return all(b - a >= 14 for a, b in zip(centers, centers[3:], strict=False))


def _draw_card(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, image: Image.Image, keys: list[str], face: Typeface, dark: bool,
    taken: list[Box], long: bool,
) -> list[Line]:  # fmt: skip
    size = int(rng.integers(face.min_px, face.max_px + 1))
    font = load_font(face.name, size)
    rows = _card_rows(rng, keys, font, long)
    if not rows:
        return []
    pitch = round(size * rng.uniform(1.2, 1.75))
    pad = int(rng.integers(0, 9))
    width, height = max(r.width for r in rows) + 2 * pad + 1, len(rows) * pitch + 2 * pad
    page = image.size
    if rng.random() < 0.06:
        over = rng.uniform(0.1, 0.5) * width
        box = (page[0] - width + over, float(rng.integers(0, page[1] - int(height))), page[0] + over, 0.0)
        box = (round(box[0]), box[1], round(box[2]), box[1] + height)
        if not _free(box, taken, 6):
            return []
    else:
        found = _place(rng, (width, height), page, taken, 8)
        if found is None:
            return []
        box = found
    ink = rng.integers(0, 70, 3) if not dark else rng.integers(190, 256, 3)
    if rng.random() < 0.35:
        fill = rng.integers(225, 256, 3) if not dark else rng.integers(10, 50, 3)
        outline = tuple(int(v) for v in rng.integers(60, 200, 3)) if rng.random() < 0.5 else None
        draw.rectangle(box, fill=tuple(int(v) for v in fill), outline=outline)
    elif rng.random() < 0.15:
        draw.rectangle(box, outline=tuple(int(v) for v in rng.integers(60, 200, 3)))
    color = tuple(int(v) for v in ink)
    ascent = -font.getbbox("0", anchor="ls")[1]
    lines = []
    for i, row in enumerate(rows):
        x, baseline = box[0] + pad, box[1] + pad + i * pitch + ascent + (pitch - ascent) // 2
        at = (x, baseline)
        lines.append(
            text_line(draw, font, at, row.key, row.key_text, row.value, color, face.name, size, value_dx=row.value_dx)
        )
    taken.append(box)
    return lines


def text_line(
    draw: ImageDraw.ImageDraw, font, at: tuple[float, float], key: str, key_text: str, value: str, ink: tuple[int, ...],
    typeface: str, size_px: int, *, value_dx: float | None = None,
) -> Line:  # fmt: skip
    """Draw a line with its baseline's left end `at` (x, y), and tell where it is. value_dx: from there to the value."""
    x, baseline = at
    start = x + (font.getlength(key_text) if value_dx is None else value_dx)
    draw.text((x, baseline), key_text, fill=ink, font=font, anchor="ls")
    draw.text((start, baseline), value, fill=ink, font=font, anchor="ls")
    edges = [start + font.getlength(value[:i]) for i in range(len(value) + 1)]
    centers = tuple((a + b) / 2 for a, b in itertools.pairwise(edges))
    ascent = -font.getbbox("0", anchor="ls")[1]
    box = (x, baseline - ascent - 1, edges[-1], baseline + 2.0)
    return Line(key, value, box, centers, baseline - ascent / 2, typeface, size_px)


def _draw_body_text(rng: np.random.Generator, image: Image.Image, dark: bool, taken: list[Box]) -> float:
    """Paste blocks of light text, draw specks and rules; return the text's area in px^2."""
    area = 0.0
    width, height = image.size
    blocks = int(rng.integers(0, 3)) if rng.random() < 0.45 else int(rng.integers(2, 8))
    tone = 255 if dark else 0
    for _ in range(blocks):
        block = _body_text(int(rng.integers(48)))
        size = (int(rng.integers(80, 500)), int(rng.integers(30, 330)))
        spot = _place(rng, size, (width, height), taken, 4)
        if spot is None:
            continue
        left, top = int(rng.integers(620 - size[0])), int(rng.integers(400 - size[1]))
        mask = block.crop((left, top, left + size[0], top + size[1])).point(_fade(int(rng.integers(15, 42))))
        image.paste((tone, tone, tone), (int(spot[0]), int(spot[1])), mask)
        taken.append(spot)
        area += size[0] * size[1]
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 5))):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        box = (x, y, x + int(rng.integers(30, 300)), y + int(rng.integers(0, 2)))
        if _free(box, taken, 3):
            draw.rectangle(box, fill=tuple(int(v) for v in rng.integers(60, 200, 3)))
    return area


@functools.cache
def _fade(percent: int) -> list[int]:
    return [value * percent // 100 for value in range(256)]


def draw_page(rng: np.random.Generator, style: Style | None = None) -> Page:
    """Draw one page; equal random states give equal pages (with equal Pillow and typeface versions)."""
    style = style or Style()
    width = int(rng.integers(style.min_side_px, style.max_side_px + 1))
    height = int(np.clip(width * rng.uniform(0.65, 1.5), style.min_side_px, style.max_side_px))
    pixels, dark = background(rng, width, height)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    taken: list[Box] = []
    shapes = _place_shapes(rng, draw, (width, height), dark, taken)
    keys = [KEYS[i] for i in rng.permutation(len(KEYS))]
    faces = [face for face in TYPEFACES if face.held_out == style.held_out_typefaces]
    lines: list[Line] = []
    for _ in range(int(rng.integers(1, style.max_cards + 1))):
        count = int(rng.integers(1, style.max_lines + 1))
        face = faces[int(rng.integers(len(faces)))]
        long = bool(rng.random() < style.long_lines)
        chosen, keys = keys[:count], keys[count:]
        if chosen:
            lines += _draw_card(rng, draw, image, chosen, face, dark, taken, long)
    area = _draw_body_text(rng, image, dark, taken)
    area += sum(line.width_px * (line.box[3] - line.box[1]) for line in lines)
    return Page(np.asarray(image), tuple(lines), tuple(shapes), area)

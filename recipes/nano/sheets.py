"""Sheets: small pages that are nothing but `key: value` lines, close together, for the vision tower alone.

A tile of an ordinary page shows about fifteen characters, a tile of a sheet about sixty, so the tower sees four times as many
characters for the same work. Keys repeat, which no question could cope with; dense labels can.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from . import views
from .fonts import TYPEFACES, Typeface, load_font
from .labels import GRID, HEADS, stack_labels, tile_labels
from .pages import LETTERS, VIEW_PX, Line, Page, background, is_readable, random_value, text_line
from .vocabulary import CHARACTERS, KEYS

SIDE_PX = 280
TILES = 10
SEPARATORS = (": ", ":", " = ", "  ")


def sheet_tiles(rng: np.random.Generator, sheets: int) -> tuple[np.ndarray, np.ndarray]:
    """TILES tiles of each of so many sheets: uint8 [N, S, S, 3], and their labels int16 [N, heads, GRID, GRID]."""
    pixels = np.zeros((sheets * TILES, VIEW_PX, VIEW_PX, 3), np.uint8)
    labels = np.zeros((sheets * TILES, len(HEADS), GRID, GRID), np.int16)
    for first in range(0, len(pixels), TILES):
        sheet = draw_sheet(rng)
        tiles = [views.anywhere(rng, sheet) for _ in range(TILES)]
        pixels[first : first + TILES] = [views.worn(rng, views.cut(sheet, tile)) for tile in tiles]
        labels[first : first + TILES] = stack_labels([tile_labels(sheet.lines, tile) for tile in tiles])
    return pixels, labels


def draw_sheet(rng: np.random.Generator) -> Page:
    """Rows of lines from edge to edge; equal random states give equal sheets."""
    pixels, dark = background(rng, SIDE_PX, SIDE_PX)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    faces = [face for face in TYPEFACES if not face.held_out]
    lines: list[Line] = []
    top = float(rng.uniform(0, 12))
    face = faces[int(rng.integers(len(faces)))]
    while top < SIDE_PX:
        if rng.random() < 0.3:
            face = faces[int(rng.integers(len(faces)))]
        size = int(rng.integers(face.min_px, face.max_px + 1))
        ink = tuple(int(v) for v in (rng.integers(190, 256, 3) if dark else rng.integers(0, 70, 3)))
        lines += _draw_row(rng, draw, face, size, top, ink)
        top += size * rng.uniform(1.15, 1.7)
    area = sum(line.width_px * (line.box[3] - line.box[1]) for line in lines)
    return Page(np.asarray(image), tuple(lines), (), area)


def _draw_row(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, face: Typeface, size: int, top: float, ink: tuple[int, ...]
) -> list[Line]:
    font = load_font(face.name, size)
    ascent = -font.getbbox("0", anchor="ls")[1]
    lines = []
    left = float(rng.integers(-60, 12))
    while left < SIDE_PX:
        key, value = KEYS[int(rng.integers(len(KEYS)))], _value(rng)
        if not is_readable(font, value):
            continue
        spelled = key if rng.random() < 0.6 else key.capitalize() if rng.random() < 0.6 else key.upper()
        key_text = spelled + SEPARATORS[int(rng.integers(len(SEPARATORS)))]
        line = text_line(draw, font, (round(left), round(top) + ascent), key, key_text, value, ink, face.name, size)
        lines.append(line)
        left = line.box[2] + float(rng.integers(10, 40))
    return lines


def _value(rng: np.random.Generator) -> str:
    """Half the time a usual value, short or long; else any characters, so that rare ones are seen as well."""
    if rng.random() < 0.5:
        return random_value(rng, KEYS[int(rng.integers(len(KEYS)))], long=bool(rng.random() < 0.5))
    pool = LETTERS if rng.random() < 0.5 else CHARACTERS
    return "".join(pool[i] for i in rng.integers(0, len(pool), int(rng.integers(3, 17))))

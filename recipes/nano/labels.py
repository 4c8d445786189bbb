"""Dense labels for the vision stage: what every 14 px patch of a view shows.

The generator knows where each character is, so the vision tower can be taught patch by patch, which takes minutes
where learning to read from answers alone takes days.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .pages import VIEW_PX, Box, Line, Page
from .vocabulary import CHARACTERS, COLORS, KEYS, SHAPES, location_index

PATCH_PX = 14
GRID = VIEW_PX // PATCH_PX
SLOTS = 3
MAX_INDEX = 24
NO_LABEL = -100
CONTINUED = len(KEYS) + 1
"""Key class of a line whose key lies left of the view."""

TILE_HEADS = {"char0": len(CHARACTERS) + 1, "char1": len(CHARACTERS) + 1, "char2": len(CHARACTERS) + 1,
              "key": len(KEYS) + 2, "index": MAX_INDEX, "cut": 2}  # fmt: skip
GLOBAL_HEADS = {"kind": len(SHAPES) + 1, "color": len(COLORS), "count": 6, "x0": 99, "y0": 99, "x1": 99, "y1": 99}
HEADS = TILE_HEADS | GLOBAL_HEADS
LINK_HEADS = ("key", "index")
"""What a decoder is asked about the patches of a line that began in an earlier tile."""


@dataclass(frozen=True)
class TileBox:
    x0: int
    y0: int

    @property
    def x1(self) -> int:
        return self.x0 + VIEW_PX

    @property
    def y1(self) -> int:
        return self.y0 + VIEW_PX


def empty_labels() -> dict[str, np.ndarray]:
    """int64 [GRID, GRID] for every head, all NO_LABEL."""
    return {name: np.full((GRID, GRID), NO_LABEL, np.int64) for name in HEADS}


def tile_labels(lines: tuple[Line, ...], tile: TileBox, *, from_x: int | None = None) -> dict[str, np.ndarray]:
    """Labels of a full-resolution tile; a character belongs to the patch that holds its centre.

    from_x: left edge of what is known of the lines, where that reaches further than the tile.
    """
    known_x = tile.x0 if from_x is None else from_x
    labels = empty_labels()
    for name in ("char0", "char1", "char2", "key"):
        labels[name][:] = 0
    for line in lines:
        row = int((line.center_y - tile.y0) // PATCH_PX)
        left, right = max(line.box[0], tile.x0), min(line.box[2], tile.x1)
        if not 0 <= row < GRID or right - left < 4 or line.box[1] < tile.y0 - 1 or line.box[3] > tile.y1 + 1:
            continue
        has_key = line.box[0] >= known_x - 1
        cols = slice(int((left - tile.x0) // PATCH_PX), int((right - tile.x0 - 0.01) // PATCH_PX) + 1)
        labels["key"][row, cols] = 1 + KEYS.index(line.key) if has_key else CONTINUED
        labels["cut"][row, cols] = int(line.box[2] > tile.x1 + 1)
        inside = [(i, x) for i, x in enumerate(line.centers) if tile.x0 <= x < tile.x1]
        first = 0 if has_key or not inside else inside[0][0]
        filled = [0] * GRID
        for i, x in inside:
            col = int((x - tile.x0) // PATCH_PX)
            if filled[col] < SLOTS:
                labels[f"char{filled[col]}"][row, col] = 1 + CHARACTERS.index(line.value[i])
                if filled[col] == 0:
                    labels["index"][row, col] = min(i - first, MAX_INDEX - 1)
                filled[col] += 1
    return labels


def stack_labels(views: list[dict[str, np.ndarray]]) -> np.ndarray:
    """int16 [V, heads, GRID, GRID], the heads in the order of HEADS."""
    return np.stack([np.stack([labels[name] for name in HEADS]) for labels in views]).astype(np.int16)


def global_labels(page: Page) -> dict[str, np.ndarray]:
    """Labels of the global view: at every patch on a shape, its kind, colour, box, and how many of its kind there are."""
    labels = empty_labels()
    labels["kind"][:] = 0
    for shape in page.shapes:
        cells = _covered(shape.box, page)
        labels["kind"][cells] = 1 + SHAPES.index(shape.kind)
        labels["color"][cells] = list(COLORS).index(shape.color)
        labels["count"][cells] = sum(other.kind == shape.kind for other in page.shapes)
        for name, value, extent in zip(
            ("x0", "y0", "x1", "y1"), shape.box, (page.width, page.height, page.width, page.height), strict=True
        ):
            labels[name][cells] = location_index(value, extent)
    return labels


def _covered(box: Box, page: Page) -> tuple[slice, slice]:
    """The patches of the stretched global view whose centre a box covers; at least one."""

    def span(low: float, high: float, extent: int) -> slice:
        first = int(np.ceil(low / extent * GRID - 0.5))
        last = int(np.floor(high / extent * GRID - 0.5))
        middle = min(int((low + high) / 2 / extent * GRID), GRID - 1)
        return slice(min(first, middle), max(last, middle) + 1)

    return span(box[1], box[3], page.height), span(box[0], box[2], page.width)

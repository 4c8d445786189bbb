"""Cuts views out of pages: the stretched global view and full-resolution tiles."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from vlm_edge.pipeline.answering.tile_choice import CELLS_PER_TILE
from vlm_edge.vision import preprocess, saliency, tiling

from .labels import TileBox
from .pages import VIEW_PX, Line, Page

CELL_PX = VIEW_PX // CELLS_PER_TILE


def global_view(page: Page) -> np.ndarray:
    """The whole page squeezed into uint8 [VIEW_PX, VIEW_PX, 3]."""
    return preprocess.global_view(page.image, VIEW_PX)


def cut(page: Page, tile: TileBox) -> np.ndarray:
    return page.image[tile.y0 : tile.y1, tile.x0 : tile.x1]


def salient(page: Page, max_tiles: int) -> list[TileBox]:
    """The tiles that the runtime would choose."""
    detail = saliency.detail(preprocess.grey(page.image), cell_px=CELL_PX)
    size = page.width, page.height
    found = tiling.salient_tiles(detail, image_px=size, tile_px=VIEW_PX, cell_px=CELL_PX, max_tiles=max_tiles)
    return [TileBox(tile.x0, tile.y0) for tile in found]


def around(rng: np.random.Generator, page: Page, line: Line) -> list[TileBox]:
    """One tile that holds the line at a random place, or two abutting ones where the line is wider than a tile.

    Now and then the tile is moved so that the line is cut.
    """
    x0, y0, _, y1 = line.box
    slack_y = VIEW_PX - (y1 - y0)
    top = _clip(y0 - rng.uniform(0, slack_y), page.height)
    slack = VIEW_PX - line.width_px
    if slack < 0:
        left = _clip(x0 - rng.uniform(0, min(40.0, 2 * VIEW_PX + slack - 107)) if slack > -107 else x0, page.width)
        right = _clip(left + VIEW_PX, page.width)
        pair = [TileBox(left, top), TileBox(right, top)]
        return pair if right == left + VIEW_PX and rng.random() < 0.9 else pair[:1]
    shift = rng.uniform(-30, 30) if rng.random() < 0.15 else 0.0
    return [TileBox(_clip(x0 - rng.uniform(0, slack) + shift, page.width), top)]


def anywhere(rng: np.random.Generator, page: Page) -> TileBox:
    return TileBox(int(rng.integers(page.width - VIEW_PX + 1)), int(rng.integers(page.height - VIEW_PX + 1)))


def worn(rng: np.random.Generator, view: np.ndarray) -> np.ndarray:
    """Now and then: what JPEG at middling quality leaves of a view."""
    if rng.random() > 0.1:
        return view
    buffer = io.BytesIO()
    Image.fromarray(view).save(buffer, "JPEG", quality=int(rng.integers(60, 95)))
    return np.asarray(Image.open(buffer))


def _clip(value: float, extent: int) -> int:
    return int(min(max(round(value), 0), extent - VIEW_PX))

"""An image and a Look -> views, tiles and reduced visual tokens."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.contracts import EncoderRunner, PromptBuilder
from vlm_edge.core.geometry import TokenGeometry
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.options import Box, Look
from vlm_edge.tokens.positions import TokenSet, row_order
from vlm_edge.tokens.reduce import reduce_tokens
from vlm_edge.vision import preprocess, saliency, tiling
from vlm_edge.vision.tiling import Tile

CELLS_PER_TILE = 16
CACHED_IMAGES = 4


@dataclass(frozen=True)
class Seen:
    """What is left of an image once it has been encoded: everything that further questions about it need."""

    width: int
    height: int
    tiles: tuple[Tile, ...]
    views: tuple[TokenSet, ...]

    @property
    def tokens_before(self) -> int:
        """Visual tokens before reduction."""
        return sum(len(view.members) for view in self.views)

    @property
    def tokens_after(self) -> int:
        """Visual tokens that enter the prompt."""
        return sum(len(view) for view in self.views)


def prompt_views(seen: Seen, grid: tuple[int, int], *, join_rows: bool) -> list[NDArray[np.float32]]:
    """Features [T, D] of each view in the order of the prompt.

    join_rows: tiles that abut give all their tokens, row by row, with the last of them and none with the others, so that
    their markers stand together.
    """
    if not join_rows:
        return [view.features for view in seen.views]
    views = [seen.views[0].features]
    for strip in tiling.strips(seen.tiles):
        sets = [seen.views[1 + i] for i in strip]
        joined = np.concatenate([tokens.features for tokens in sets])[row_order(sets, grid)]
        views += [joined[:0]] * (len(strip) - 1) + [joined]
    return views


class SeenCache:
    """The last few images by content and Look, so that a second question costs no vision at all."""

    def __init__(self, capacity: int = CACHED_IMAGES) -> None:
        self._capacity = capacity
        self._items: OrderedDict[str, Seen] = OrderedDict()

    def get(self, key: str) -> Seen | None:
        """The entry, which becomes the youngest; or None."""
        if key in self._items:
            self._items.move_to_end(key)
        return self._items.get(key)

    def put(self, key: str, seen: Seen) -> None:
        """Add an entry and drop the oldest one beyond the capacity."""
        self._items[key] = seen
        while len(self._items) > self._capacity:
            self._items.popitem(last=False)


@contextmanager
def timed(timings_ms: MutableMapping[str, float], name: str) -> Iterator[None]:
    """Add the block's wall time to timings_ms[name]."""
    start = time.perf_counter()
    try:
        yield
    finally:
        timings_ms[name] = timings_ms.get(name, 0.0) + 1000 * (time.perf_counter() - start)


def choose_tiles(pixels: NDArray[np.uint8], geometry: TokenGeometry, look: Look) -> tuple[Tile, ...]:
    """The tiles that a Look gives an image; none where the global view already shows every pixel.

    Raises BadInput when a tile that the caller gave is larger than a view or reaches past the image.
    """
    height, width = pixels.shape[:2]
    side = geometry.view_px
    if look.tiles is not None:
        return tuple(_given_tile(box, image_px=(width, height), side_px=side) for box in look.tiles)
    if look.max_tiles == 0 or (width <= side and height <= side):
        return ()
    if look.tiling == "grid":
        return tiling.grid_tiles(image_px=(width, height), tile_px=side, max_tiles=look.max_tiles)
    cell = side // CELLS_PER_TILE
    detail = saliency.detail(preprocess.grey(pixels), cell_px=cell)
    return tiling.salient_tiles(detail, image_px=(width, height), tile_px=side, cell_px=cell, max_tiles=look.max_tiles)


def _given_tile(box: Box, *, image_px: tuple[int, int], side_px: int) -> Tile:
    x0, y0, x1, y1 = box
    if x1 - x0 > side_px or y1 - y0 > side_px:
        raise BadInput(f"tile {box} is larger than this bundle's views", remedy=f"use {side_px} x {side_px} px at most")
    if x1 > image_px[0] or y1 > image_px[1]:
        size = f"{image_px[0]} x {image_px[1]} px"
        raise BadInput(f"tile {box} reaches past the image ({size})", remedy="give boxes in pixels of that image")
    return Tile(x0, y0, x1, y1, 0.0)


def see(
    pixels: NDArray[np.uint8],
    *,
    source_px: tuple[int, int],
    geometry: TokenGeometry,
    look: Look,
    prompt: PromptBuilder,
    encoder: EncoderRunner,
    timings_ms: MutableMapping[str, float],
) -> Seen:
    """Tile, encode and reduce one image.

    pixels: RGB uint8 [H, W, 3].  source_px: width and height of the source, larger than `pixels` where it was decoded at a
    reduced scale (then without tiles).
    """
    with timed(timings_ms, "saliency"):
        tiles = choose_tiles(pixels, geometry, look)
    with timed(timings_ms, "preprocess"):
        views = [preprocess.global_view(pixels, geometry.view_px)]
        views += [preprocess.crop(pixels, tile, geometry.view_px) for tile in tiles]
        normal = prompt.pixels(views)
    with timed(timings_ms, "vision"):
        features = encoder.encode(normal)
    with timed(timings_ms, "reduce"):
        reduced = reduce_tokens(
            look.reduce, features, grid=geometry.grid, threshold=look.threshold, keep=look.keep, seed=look.seed
        )
    return Seen(source_px[0], source_px[1], tiles, reduced)

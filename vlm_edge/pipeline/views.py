"""An image and a Look -> views, tiles and reduced visual tokens, as they enter the prompt."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core import host
from vlm_edge.core.contracts import EncoderRunner, Floats, PromptBuilder, SaliencyRunner, ViewMaker
from vlm_edge.core.geometry import ImageLayout, TokenGeometry
from vlm_edge.core.image_inputs import ImageInputs
from vlm_edge.errors import BadInput, DamagedBundle
from vlm_edge.pipeline.options import CNN, Box, Look
from vlm_edge.tokens.positions import TokenSet, row_order
from vlm_edge.tokens.reduce import reduce_tokens
from vlm_edge.tokens.relevance import text_relevance
from vlm_edge.vision import preprocess, saliency, tiling
from vlm_edge.vision.grounding import Frames
from vlm_edge.vision.tiling import Tile

CELLS_PER_TILE = 16
MOST_CELLS = 1 << 20
"""An image with more cells than this gets larger ones: placing tiles takes about 100 bytes a cell."""
CACHED_IMAGES = 4
NOVELTY = "novelty"
ASKS_THE_QUESTION = frozenset({"cdpruner"})
"""Reductions that choose by the question, so that what they leave of an image serves no other."""


@dataclass(frozen=True)
class Hints:
    """What tiles and tokens are chosen by, beside the image.

    network: of a Look by `cnn`.  words: embeddings [N, Dl] of the question, for a reduction in ASKS_THE_QUESTION.
    """

    network: SaliencyRunner | None = None
    words: Floats | None = None


@dataclass(frozen=True)
class Seen:
    """What is left of an image once it has been encoded: everything that further questions about it need.

    tiles: parts that the model saw beside the whole image, in source px.  runs: embeddings [T, D] for each of the image's
    places in the prompt.  members: per view, the token that each original token went to.  boxes: what each view shows, in px
    of what was decoded.  removed: tokens that a reduction took away.  frame: what the view of the whole image spans, in shares of
    the image's width and height.
    """

    width: int
    height: int
    tiles: tuple[Tile, ...]
    layout: ImageLayout
    runs: tuple[Floats, ...]
    members: tuple[NDArray[np.int32], ...]
    boxes: tuple[Box, ...]
    removed: int = 0
    frame: tuple[float, float, float, float] = (0, 0, 1, 1)

    @property
    def frames(self) -> Frames:
        """What coordinates in an answer can span."""
        x0, y0, x1, y1 = self.frame
        view = (x0 * self.width, y0 * self.height, x1 * self.width, y1 * self.height)
        return Frames((self.width, self.height), view, self.layout.canvas_px)

    @property
    def tokens_before(self) -> int:
        """Visual tokens before reduction."""
        return self.layout.visual_tokens

    @property
    def tokens_after(self) -> int:
        """Visual tokens that enter the prompt."""
        return self.layout.visual_tokens - self.removed


def prompt_views(
    views: Sequence[TokenSet], tiles: Sequence[Tile], grid: tuple[int, int], *, join_rows: bool
) -> list[Floats]:
    """Features [T, D] of each view in the order of the prompt.

    join_rows: tiles that abut give all their tokens, row by row, with the last of them and none with the others, so that
    their markers stand together.
    """
    if not join_rows:
        return [view.features for view in views]
    joined_views = [views[0].features]
    for strip in tiling.strips(tiles):
        sets = [views[1 + i] for i in strip]
        joined = np.concatenate([tokens.features for tokens in sets])[row_order(sets, grid)]
        joined_views += [joined[:0]] * (len(strip) - 1) + [joined]
    return joined_views


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


def choose_tiles(
    pixels: NDArray[np.uint8],
    geometry: TokenGeometry,
    look: Look,
    *,
    network: SaliencyRunner | None = None,
    whole: Floats | None = None,
) -> tuple[Tile, ...]:
    """The tiles that a Look gives an image; none where the global view already shows every pixel.

    network: for saliency by `cnn`.  whole: the global view's tokens [P, D], for `novelty`.
    Raises BadInput when a tile that the caller gave is larger than a view or reaches past the image, or the network's values
    cannot be used.
    """
    height, width = pixels.shape[:2]
    side = geometry.view_px
    if look.tiles is not None:
        return tuple(_given_tile(box, image_px=(width, height), side_px=side) for box in look.tiles)
    if look.max_tiles == 0 or (width <= side and height <= side):
        return ()
    if look.tiling == "grid":
        return tiling.grid_tiles(image_px=(width, height), tile_px=side, max_tiles=look.max_tiles)
    cell = cell_px_for(width, height, side)
    if look.saliency == CNN and network is not None:
        found = saliency.cnn(pixels, network, cell_px=cell)
    elif look.saliency == NOVELTY and whole is not None:
        found = saliency.to_cells(saliency.novelty(whole, grid=geometry.grid), image_px=(width, height), cell_px=cell)
    else:
        found = saliency.detail_of_bands([pixels], cell_px=cell)
    return tiling.salient_tiles(found, image_px=(width, height), tile_px=side, cell_px=cell, max_tiles=look.max_tiles)


def cell_px_for(width: int, height: int, side_px: int) -> int:
    """A part of the tile's side, so small that CELLS_PER_TILE make one, unless that came to more than MOST_CELLS."""
    cell = side_px // CELLS_PER_TILE
    while -(-width // cell) * -(-height // cell) > MOST_CELLS and side_px % (2 * cell) == 0:
        cell *= 2
    return cell


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
    look: Look,
    prompt: PromptBuilder,
    encoder: EncoderRunner,
    timings_ms: MutableMapping[str, float],
    free_tiles: bool,
    join_rows: bool = False,
    hints: Hints | None = None,
) -> Seen:
    """Cut, encode and reduce one image.

    pixels: RGB uint8 [H, W, 3].  source_px: width and height of the source, larger than `pixels` where it was decoded at a
    reduced scale (then without tiles).  free_tiles: whether the Look's tiles lie anywhere, or are those of the family.
    """
    geometry, hints, whole = prompt.views.geometry, hints or Hints(), None
    if free_tiles and look.saliency == NOVELTY and max(pixels.shape[:2]) > geometry.view_px:
        with timed(timings_ms, "preprocess"):
            first = tiled(pixels, (), prompt.views)
        with timed(timings_ms, "vision"):
            whole = encoder.encode(_graph_inputs(first, encoder))
    with timed(timings_ms, "saliency"):
        tiles: tuple[Tile, ...] = ()
        if free_tiles:
            tokens = None if whole is None else whole[0]
            tiles = choose_tiles(pixels, geometry, look, network=hints.network, whole=tokens)
    with timed(timings_ms, "preprocess"):
        shown = tiled(pixels, tiles, prompt.views) if tiles else prompt.views.prepare(pixels, whole=look.whole)
        host.release_heap()
    layout = shown.layout
    with timed(timings_ms, "vision"):
        features = _encoded(shown, encoder, whole if tiles else None)
    with timed(timings_ms, "reduce"):
        grid = geometry.grid
        if features.ndim == 2:  # packed patches: one view, in the image's own proportions
            features, grid = features[None], layout.token_grid
        if features.shape[:2] != (layout.views, grid[0] * grid[1]):
            raise DamagedBundle(
                f"the vision graph gives {' x '.join(map(str, features.shape[:2]))} tokens for {layout.views} views of "
                f"{grid[0]} x {grid[1]}",
                remedy="export the vision encoder again with this version",
            )
        views = reduce_tokens(
            look.reduce, features, grid=grid, threshold=look.threshold, keep=look.keep, seed=look.seed,
            scores=_token_scores(look.reduce, features, grid, hints.words),
        )  # fmt: skip
        runs = prompt.runs(prompt_views(views, tiles, grid, join_rows=join_rows), layout)
    return Seen(
        *source_px,
        tiles=tiles or own_tiles(shown.boxes, layout),
        layout=layout,
        runs=tuple(runs),
        members=tuple(view.members for view in views),
        boxes=tuple(shown.boxes),
        removed=sum(len(view.members) - len(view) for view in views),
        frame=_shares(shown.frame or max(shown.boxes, key=_area), pixels),
    )


def _encoded(shown: ImageInputs, encoder: EncoderRunner, whole: Floats | None) -> Floats:
    """Features of every view; those of the first one, where they are known already, are not computed again."""
    arrays = _graph_inputs(shown, encoder)
    if whole is None:
        return encoder.encode(arrays)
    rest = {name: array[1:] for name, array in arrays.items()}
    return np.concatenate([whole, encoder.encode(rest)])


def _token_scores(method: str, features: Floats, grid: tuple[int, int], words: Floats | None) -> Floats | None:
    """What a reduction of tokens.reduce.SCORED chooses by: likeness to the question, or how unlike its surroundings a token is."""
    if method in ASKS_THE_QUESTION and words is not None:
        return text_relevance(features, words)
    if method == "landmark":
        return np.stack([saliency.novelty(view, grid=grid).reshape(-1) for view in features])
    return None


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _shares(box: Sequence[float], pixels: NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """Of the decoded image, which may be smaller than its source."""
    height, width = pixels.shape[:2]
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def tiled(pixels: NDArray[np.uint8], tiles: Sequence[Tile], maker: ViewMaker) -> ImageInputs:
    """The whole image and tiles of it at full resolution, one view after another."""
    geometry = maker.geometry
    side, count = geometry.view_px, 1 + len(tiles)
    views = [preprocess.global_view(pixels, side), *(preprocess.crop(pixels, tile, side) for tile in tiles)]
    boxes = ((0, 0, pixels.shape[1], pixels.shape[0]), *(tile.box for tile in tiles))
    layout = replace(
        geometry.layout((pixels.shape[1], pixels.shape[0])),
        views=count,
        visual_tokens=count * geometry.tokens_per_view,
        marker_tokens=count * geometry.separator_tokens,
    )
    return ImageInputs({"pixel_values": maker.pixels(views)}, boxes, layout)


def _graph_inputs(shown: ImageInputs, encoder: EncoderRunner) -> dict[str, NDArray[Any]]:
    """The arrays that the graph takes, which may be fewer than a family prepares."""
    missing = [name for name in encoder.inputs if name not in shown.arrays]
    if missing:
        raise DamagedBundle(
            f"the vision graph takes {missing[0]}, which this family does not prepare",
            remedy="export the vision encoder again with this version",
        )
    return {name: shown.arrays[name] for name in encoder.inputs}


def own_tiles(boxes: Sequence[Box], layout: ImageLayout) -> tuple[Tile, ...]:
    """The views that a family cut beside the whole image, less those that hold nothing but padding."""
    if layout.views == 1:
        return ()
    width, height = max(box[2] for box in boxes), max(box[3] for box in boxes)
    return tuple(
        Tile(*box, 0.0) for box in boxes if box != (0, 0, width, height) and box[0] < box[2] and box[1] < box[3]
    )

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
from vlm_edge.core.geometry import ImageLayout, Size
from vlm_edge.core.image_inputs import ImageInputs
from vlm_edge.core.layout import Box
from vlm_edge.errors import DamagedBundle
from vlm_edge.pipeline.answering.options import Look
from vlm_edge.pipeline.answering.tile_choice import NOVELTY, choose_cells, choose_tiles
from vlm_edge.tokens.budget import reduce_image
from vlm_edge.tokens.positions import TokenSet, row_order
from vlm_edge.tokens.relevance import text_relevance
from vlm_edge.vision import preprocess, saliency, tiling
from vlm_edge.vision.grounding import Frames
from vlm_edge.vision.raster import Picture, crops, size_of
from vlm_edge.vision.tiling import Tile

CACHED_IMAGES = 4
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


def see(
    pixels: Picture,
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

    pixels: RGB uint8 [H, W, 3], or a raster.  source_px: width and height of the source, larger than `pixels` where it was decoded
    at a reduced scale (then without tiles).  free_tiles: whether the Look's tiles lie anywhere, or are those of the family.
    """
    geometry, hints = prompt.views.geometry, hints or Hints()
    layout, tiles, whole = _chosen(pixels, look, prompt, encoder, timings_ms, hints, free_tiles=free_tiles)
    with timed(timings_ms, "preprocess"):
        if free_tiles and tiles:
            shown = tiled(pixels, tiles, prompt.views)
        elif layout is not None:
            shown = prompt.views.prepare(pixels, layout=layout)
        else:
            shown = prompt.views.prepare(pixels, whole=look.whole)
        host.release_heap()
    layout = shown.layout
    with timed(timings_ms, "vision"):
        features = _encoded(shown, encoder, whole if free_tiles and tiles else None)
    with timed(timings_ms, "reduce"):
        grid = geometry.grid
        if features.ndim == 2:  # packed patches: one view, in the image's own proportions
            features, grid = features[None], (1, len(features)) if layout.cells else layout.token_grid
        if features.shape[:2] != (layout.views, grid[0] * grid[1]):
            raise DamagedBundle(
                f"the vision graph gives {' x '.join(map(str, features.shape[:2]))} tokens for {layout.views} views of "
                f"{grid[0]} x {grid[1]}",
                remedy="export the vision encoder again with this version",
            )
        views = reduce_image(
            look.reduce, features, grid=grid, threshold=look.threshold, keep=look.keep, seed=look.seed,
            scores=_token_scores(look.reduce, features, grid, hints.words),
        )  # fmt: skip
        joined = prompt_views(views, tiles, grid, join_rows=join_rows and free_tiles)
        members = tuple(view.members for view in views)
        runs = prompt.runs(joined, layout) if look.reduce == "none" else prompt.reduced_runs(joined, layout, members)
        removed = sum(len(view.members) - len(view) for view in views)
        if layout.token_grid != (0, 0):  # with newlines and without padding, which no view has by itself
            removed = layout.visual_tokens - sum(map(len, runs))
    return Seen(
        *source_px,
        tiles=tiles or own_tiles(shown.boxes, layout),
        layout=layout,
        runs=tuple(runs),
        members=members,
        boxes=tuple(shown.boxes),
        removed=removed,
        frame=_shares(shown.frame or max(shown.boxes, key=_area), size_of(pixels)),
    )


def _chosen(
    pixels: Picture,
    look: Look,
    prompt: PromptBuilder,
    encoder: EncoderRunner,
    timings_ms: MutableMapping[str, float],
    hints: Hints,
    *,
    free_tiles: bool,
) -> tuple[ImageLayout | None, tuple[Tile, ...], Floats | None]:
    """Layout of a family's chosen tiles (else None), the tiles, and features of the whole view where they were needed."""
    geometry, image_px, whole = prompt.views.geometry, size_of(pixels), None
    if not free_tiles and not look.chooses:
        return None, (), None
    overview = None if free_tiles else geometry.overview(image_px)
    if look.saliency == NOVELTY and (max(image_px) > geometry.view_px if free_tiles else geometry.scales(image_px)):
        with timed(timings_ms, "preprocess"):
            first = tiled(pixels, (), prompt.views) if free_tiles else prompt.views.prepare(pixels, layout=overview)
        with timed(timings_ms, "vision"):
            whole = encoder.encode(_graph_inputs(first, encoder))
    with timed(timings_ms, "saliency"):
        tokens = None if whole is None else whole.reshape(-1, whole.shape[-1])
        if free_tiles:
            return None, choose_tiles(pixels, geometry, look, network=hints.network, whole=tokens), whole
        packed = overview is not None and overview.grid_thw is not None
        layout, tiles = choose_cells(
            pixels, geometry, look, network=hints.network, whole=tokens,
            whole_grid=overview.token_grid if packed and overview is not None else None,
        )  # fmt: skip
        return layout, tiles, whole


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


def _shares(box: Sequence[float], size: Size) -> tuple[float, float, float, float]:
    """Of the decoded image, which may be smaller than its source."""
    width, height = size
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def tiled(pixels: Picture, tiles: Sequence[Tile], maker: ViewMaker) -> ImageInputs:
    """The whole image and tiles of it at full resolution, one view after another."""
    geometry = maker.geometry
    side, count, image_px = geometry.view_px, 1 + len(tiles), size_of(pixels)
    parts = crops(pixels, [tile.box for tile in tiles])
    views = [preprocess.global_view(pixels, side), *(preprocess.filled(part, side) for part in parts)]
    boxes = ((0, 0, *image_px), *(tile.box for tile in tiles))
    layout = replace(
        geometry.layout(image_px),
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

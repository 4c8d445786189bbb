"""How many visual tokens an image costs: the one function that planner and runtime both call.

A family's own preprocessing cuts an image by its rules: `geometry.layout(image_px)` says how, for any size of image.
The rules follow transformers' processors to the last rounding, because a plan that is one token short is wrong.
Sizes are (width, height) in px throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from vlm_edge.core.layout import Box as Box
from vlm_edge.core.layout import Cell, distinct_rows
from vlm_edge.core.layout import ImageLayout as ImageLayout
from vlm_edge.core.layout import Size as Size
from vlm_edge.core.layout import require_pixels as require_pixels
from vlm_edge.core.patch_geometry import MAX_PATCH_ASPECT as MAX_PATCH_ASPECT
from vlm_edge.core.patch_geometry import PatchGeometry as PatchGeometry
from vlm_edge.core.token_geometry import TokenGeometry as TokenGeometry
from vlm_edge.core.token_geometry import up_to_multiple
from vlm_edge.errors import BadInput

IDEFICS3_MAX_PX = 4096


@dataclass(frozen=True, kw_only=True)
class AnyResGeometry(TokenGeometry):
    """LLaVA-NeXT: the whole image in one view, and again at the pinpoint that keeps most of it, padded and tiled.

    pinpoints: canvas sizes (width, height), multiples of view_px.  Tokens of padding are dropped, and each row of the
    rest ends in one newline token.
    """

    pinpoints: tuple[Size, ...]

    @property
    def most_tiles(self) -> int:
        """Those of the largest pinpoint."""
        return max((width * height // self.view_px**2 for width, height in self.pinpoints), default=0)

    def whole(self) -> Self:
        """No pinpoint: the view of the whole image, and one newline."""
        return replace(self, pinpoints=())

    def layout(self, image_px: Size) -> ImageLayout:
        """Example: 672 x 672 px with 24 x 24 tokens a view -> 576 + 48 * 48 + 48 = 2928."""
        width, height = require_pixels(image_px)
        if not self.pinpoints:
            side = self.view_px
            return ImageLayout((side, side), (0, 0, side, side), 1, self.tokens_per_view + 1)
        canvas = self._best_pinpoint(width, height)
        fitted = _fit_inside(image_px, canvas)
        x0, y0 = ((outer - inner) // 2 for outer, inner in zip(canvas, fitted, strict=True))
        cols, rows = (side // self.view_px for side in canvas)
        unpadded = self._unpadded(width, height, rows * self.grid[0], cols * self.grid[1])
        return ImageLayout(
            canvas_px=canvas,
            content=(x0, y0, x0 + fitted[0], y0 + fitted[1]),
            views=1 + rows * cols,
            visual_tokens=self.tokens_per_view + unpadded[0] * unpadded[1] + unpadded[0],
            rows=rows,
            cols=cols,
            token_grid=unpadded,
        )

    def scales(self, image_px: Size) -> tuple[ImageLayout, ...]:
        """The family's own grid, before it the image's own pixels where that shrinks them."""
        if not self.pinpoints:
            return ()
        own = self.layout(image_px)
        return (own,) if own.content[2] - own.content[0] >= image_px[0] else (self._native(image_px), own)

    def _native(self, image_px: Size) -> ImageLayout:
        """The image as it is, in the middle of the smallest canvas of whole tiles."""
        canvas = tuple(up_to_multiple(side, self.view_px) for side in image_px)
        x0, y0 = ((outer - inner) // 2 for outer, inner in zip(canvas, image_px, strict=True))
        content = (x0, y0, x0 + image_px[0], y0 + image_px[1])
        rows, cols = (
            -(-content[3 - axis] * count // self.view_px) - content[1 - axis] * count // self.view_px
            for axis, count in enumerate(self.grid)
        )
        return ImageLayout(
            (canvas[0], canvas[1]), content, 1 + canvas[0] * canvas[1] // self.view_px**2,
            self.tokens_per_view + rows * cols + rows, rows=canvas[1] // self.view_px, cols=canvas[0] // self.view_px,
            token_grid=(rows, cols),
        )  # fmt: skip

    def kept_window(self, scale: ImageLayout, cell: Cell) -> Box:
        """Columns and rows of a tile's own tokens that are no padding: x0, y0, x1, y1."""
        spans = []
        for index, tiles, of_tile, kept in zip(
            cell, (scale.rows, scale.cols), self.grid, scale.token_grid, strict=True
        ):
            first = (tiles * of_tile - kept) // 2 - index * of_tile
            begin = min(max(first, 0), of_tile)
            spans.append((begin, max(begin, min(first + kept, of_tile))))
        return spans[1][0], spans[0][0], spans[1][1], spans[0][1]

    def _subset(self, image_px: Size, scale: ImageLayout) -> ImageLayout:  # noqa: ARG002
        """Tiles of a row stand side by side, whatever is left out between them, and a newline ends each row of tokens."""
        costs = [self._cost(scale, cell) for cell in scale.shown_cells]
        newlines = {row: once for (row, _), (_, once) in zip(scale.shown_cells, costs, strict=True)}
        tokens = self.tokens_per_view + sum(own for own, _ in costs) + sum(newlines.values())
        return replace(scale, views=1 + len(costs), visual_tokens=tokens)

    def _cost(self, scale: ImageLayout, cell: Cell) -> tuple[int, int]:
        x0, y0, x1, y1 = self.kept_window(scale, cell)
        return (x1 - x0) * (y1 - y0), y1 - y0

    def _best_pinpoint(self, width: int, height: int) -> Size:
        """Most pixels of the image kept, then least canvas wasted, then first in the list."""

        def worth(canvas: Size) -> tuple[int, int]:
            scale = min(canvas[0] / width, canvas[1] / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            return kept, kept - canvas[0] * canvas[1]

        return max(self.pinpoints, key=worth)

    @staticmethod
    def _unpadded(width: int, height: int, rows: int, cols: int) -> tuple[int, int]:
        """Rows and columns of tokens left when as much as was padded is cut on both sides; may be 0 for a thin image."""
        if width / height > cols / rows:
            padding = (rows - int(round(height * (cols / width), 7))) // 2
            return rows - 2 * padding, cols
        padding = (cols - int(round(width * (rows / height), 7))) // 2
        return rows, cols - 2 * padding


@dataclass(frozen=True, kw_only=True)
class TileGeometry(TokenGeometry):
    """InternVL: stretched to the tile arrangement of nearest proportions, and a thumbnail if that is more than a tile.

    marker_tokens: around all views of an image together.
    """

    min_tiles: int
    max_tiles: int
    marker_tokens: int = 2

    @property
    def most_tiles(self) -> int:
        """One tile alone is the whole image."""
        return self.max_tiles if self.max_tiles > 1 else 0

    def whole(self) -> Self:
        """One tile, which needs no thumbnail."""
        return replace(self, min_tiles=1, max_tiles=1)

    def layout(self, image_px: Size) -> ImageLayout:
        """Example: 896 x 448 px at 448 px a view -> 2 tiles and a thumbnail, 3 * 256 tokens."""
        return self._arranged(*self._arrangement(*require_pixels(image_px)))

    def scales(self, image_px: Size) -> tuple[ImageLayout, ...]:
        """The family's own arrangement, before it one of at least the image's own pixels where that shrinks them."""
        own = self.layout(image_px)
        if self.max_tiles <= 1:
            return ()
        found = (own,) if own.views > 1 else ()
        if all(side <= canvas for side, canvas in zip(image_px, own.canvas_px, strict=True)):
            return found
        cols, rows = (-(-side // self.view_px) for side in image_px)
        return (self._arranged(cols, rows), *found)

    def _arranged(self, cols: int, rows: int) -> ImageLayout:
        canvas = cols * self.view_px, rows * self.view_px
        views = cols * rows + (cols * rows > 1)
        return ImageLayout(
            canvas, (0, 0, *canvas), views, views * self.tokens_per_view, self.marker_tokens, rows=rows, cols=cols
        )

    def _arrangement(self, width: int, height: int) -> Size:
        """(cols, rows); among equally near proportions, more tiles as long as the image has half of their pixels."""
        best, nearest = (1, 1), math.inf
        for cols, rows in sorted(_arrangements(self.min_tiles, self.max_tiles), key=math.prod):
            distance = abs(width / height - cols / rows)
            if distance < nearest:
                best, nearest = (cols, rows), distance
            elif distance == nearest and width * height > 0.5 * self.view_px**2 * cols * rows:
                best = cols, rows
        return best


@dataclass(frozen=True, kw_only=True)
class SplitGeometry(TokenGeometry):
    """Idefics3 and SmolVLM: scaled to one longest edge, cut into tiles named by row and column, whole view last.

    longest_px: the longest edge.  split: whether tiles are cut at all.  Tokens of the markers depend on the tokenizer:
    tile_marker_tokens before each tile, row_end_tokens after each row of tiles, blank_line_tokens more before the whole
    view of a split image, whole_marker_tokens around the whole view.
    """

    longest_px: int
    split: bool = True
    tile_marker_tokens: int = 2
    row_end_tokens: int = 1
    blank_line_tokens: int = 0
    whole_marker_tokens: int = 3

    @property
    def most_tiles(self) -> int:
        """A square of the longest edge, cut into views."""
        side = math.ceil(min(self.longest_px, IDEFICS3_MAX_PX) / self.view_px)
        return side * side if self.split and side > 1 else 0

    def whole(self) -> Self:
        """Not split."""
        return replace(self, split=False)

    def resized_px(self, image_px: Size) -> Size:
        """Size after the first of two resizes: the longest edge is longest_px, the other one even."""
        width, height = require_pixels(image_px)
        aspect = width / height
        if width >= height:
            width, height = self.longest_px, _next_even(int(self.longest_px / aspect))
        else:
            width, height = _next_even(int(self.longest_px * aspect)), self.longest_px
        width, height = max(width, 1), max(height, 1)
        aspect = width / height
        if width >= height and width > IDEFICS3_MAX_PX:
            width, height = IDEFICS3_MAX_PX, int(IDEFICS3_MAX_PX / aspect)
        elif height > width and height > IDEFICS3_MAX_PX:
            width, height = int(IDEFICS3_MAX_PX * aspect), IDEFICS3_MAX_PX
        return max(width, 1), max(height, 1)

    def layout(self, image_px: Size) -> ImageLayout:
        """Example: a square at longest edge 1456 and 364 px a view -> 4 x 4 tiles and the whole, 17 * 169 tokens."""
        width, height = self.resized_px(image_px)
        canvas = self._canvas(width, height) if self.split else (self.view_px, self.view_px)
        cols, rows = (side // self.view_px for side in canvas)
        if cols * rows <= 1:
            return ImageLayout(canvas, (0, 0, *canvas), 1, self.tokens_per_view, self.whole_marker_tokens)
        views = rows * cols + 1
        markers = rows * (cols * self.tile_marker_tokens + self.row_end_tokens) + self.blank_line_tokens
        markers += self.whole_marker_tokens
        content = (0, 0, *canvas)
        return ImageLayout(canvas, content, views, views * self.tokens_per_view, markers, rows=rows, cols=cols)

    def scales(self, image_px: Size) -> tuple[ImageLayout, ...]:
        """The family's own grid: its markers name no more rows and columns than that."""
        own = self.layout(image_px)
        return (own,) if own.views > 1 else ()

    def _subset(self, image_px: Size, scale: ImageLayout) -> ImageLayout:
        cells = scale.shown_cells
        markers = len(cells) * self.tile_marker_tokens + distinct_rows(cells) * self.row_end_tokens
        return replace(
            super()._subset(image_px, scale),
            marker_tokens=markers + self.blank_line_tokens + self.whole_marker_tokens,
        )

    def _cost(self, scale: ImageLayout, cell: Cell) -> tuple[int, int]:
        return super()._cost(scale, cell)[0] + self.tile_marker_tokens, self.row_end_tokens

    def _canvas(self, width: int, height: int) -> Size:
        """Both edges up to a multiple of view_px, the longer one first, since the other is scaled along with it."""
        aspect = width / height
        if width >= height:
            width = up_to_multiple(width, self.view_px)
            return width, max(self.view_px, up_to_multiple(int(width / aspect), self.view_px))
        height = up_to_multiple(height, self.view_px)
        return max(self.view_px, up_to_multiple(int(height * aspect), self.view_px)), height


@dataclass(frozen=True, kw_only=True)
class QuarterGeometry(TokenGeometry):
    """Idefics2: views of any proportions between two edge lengths, each resampled to a fixed number of latents.

    split: four quarters and the whole image, else the whole alone.  boundary_tokens: one before the first view, one after each.
    """

    shortest_px: int
    longest_px: int
    split: bool = False
    fixed_views: ClassVar[bool] = False
    by_parts: ClassVar[bool] = False

    @property
    def most_tiles(self) -> int:
        """Four quarters."""
        return 4 if self.split else 0

    def whole(self) -> Self:
        """Not split."""
        return replace(self, split=False)

    def parts(self, image_px: Size) -> tuple[Box, ...]:
        """Boxes of the views in source px; raises BadInput where there is nothing to quarter."""
        width, height = require_pixels(image_px)
        whole = (0, 0, width, height)
        if not self.split:
            return (whole,)
        if min(image_px) < 2:
            raise BadInput(
                f"an image of {width}x{height} px cannot be cut in four", remedy="use --tiling none, or a larger image"
            )
        xs, ys = ((0, width // 2), (width // 2, width)), ((0, height // 2), (height // 2, height))
        return (*((x0, y0, x1, y1) for y0, y1 in ys for x0, x1 in xs), whole)

    def fitted_px(self, part_px: Size) -> Size:
        """Down to the longest edge in proportion, then each edge up to the shortest on its own."""
        width, height = part_px
        aspect = width / height
        if width >= height and width > self.longest_px:
            width, height = self.longest_px, int(self.longest_px / aspect)
        elif height > width and height > self.longest_px:
            width, height = int(self.longest_px * aspect), self.longest_px
        return max(width, self.shortest_px), max(height, self.shortest_px)

    def layout(self, image_px: Size) -> ImageLayout:
        """Example: 64 latents -> 64 + 2 tokens whole, 5 * 64 + 6 split; the canvas is the largest view."""
        fitted = [self.fitted_px((x1 - x0, y1 - y0)) for x0, y0, x1, y1 in self.parts(image_px)]
        canvas = max(width for width, _ in fitted), max(height for _, height in fitted)
        views, side = len(fitted), 2 if self.split else 0
        return ImageLayout(
            canvas, (0, 0, *canvas), views, views * self.tokens_per_view, 1 + views, rows=side, cols=side
        )


Geometry = TokenGeometry | AnyResGeometry | TileGeometry | SplitGeometry | QuarterGeometry | PatchGeometry


def visual_token_count(
    geometry: TokenGeometry, *, tiles: int | None = None, image_px: Size | None = None, images: int = 1
) -> int:
    """Prompt positions that `images` images take before any reduction, text tokens that mark views included.

    tiles: each image is one global view and that many tiles.  image_px: each image has that (width, height) and is cut
    by the family's own rules.  Both: at most that many tiles of such an image are chosen, and this is what they take at most.
    `geometry.layout(image_px)` gives visual and marker tokens apart.
    Raises BadInput for a size that the family refuses.

    Example: 64 tokens a view and one separator, 6 tiles -> 7 * 65 = 455.
    """
    if image_px is not None:
        return images * (geometry.layout(image_px) if tiles is None else geometry.most(image_px, tiles)).positions
    if tiles is None:
        raise TypeError("give tiles, image_px or both")
    return images * (1 + tiles) * (geometry.tokens_per_view + geometry.separator_tokens)


def _fit_inside(image_px: Size, canvas: Size) -> Size:
    """The image in proportion, touching the canvas on two sides; rounded up."""
    scales = canvas[0] / image_px[0], canvas[1] / image_px[1]
    if scales[0] < scales[1]:
        return canvas[0], min(math.ceil(image_px[1] * scales[0]), canvas[1])
    return min(math.ceil(image_px[0] * scales[1]), canvas[0]), canvas[1]


def _arrangements(least: int, most: int) -> list[Size]:
    """Every (cols, rows) of `least` to `most` tiles, by columns, then rows."""
    return [(c, r) for c in range(1, most + 1) for r in range(1, most // c + 1) if c * r >= least]


def _next_even(value: int) -> int:
    return value + value % 2

"""How many visual tokens an image costs: the one function that planner and runtime both call.

A family's own preprocessing cuts an image by its rules: `geometry.layout(image_px)` says how, for any size of image.
The rules follow transformers' processors to the last rounding, because a plan that is one token short is wrong.
Sizes are (width, height) in px throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from vlm_edge.errors import BadInput

Size = tuple[int, int]
Box = tuple[int, int, int, int]
MAX_PATCH_ASPECT = 200
IDEFICS3_MAX_PX = 4096


@dataclass(frozen=True)
class ImageLayout:
    """How one image is cut into views, and what they cost in the prompt.

    canvas_px: size that the image is brought to before tiles are cut from it; for views of several sizes, the largest.
    content: box of the image on the canvas; smaller than the canvas where the family pads.
    rows, cols: tiles on the canvas; 0 where it is shown in one piece.
    views: pictures that the encoder sees, the view of the whole image included.
    token_grid: rows and columns of the visual tokens that stand for the canvas: after unpadding, newlines not counted
    (AnyRes), or after merging patches (Qwen-VL); (0, 0) where each view keeps a grid of its own.
    grid_thw: frames, rows and columns of patches before merging (Qwen-VL).
    marker_tokens: text tokens that the family puts around the views; visual_tokens does not count them.
    """

    canvas_px: Size
    content: Box
    views: int
    visual_tokens: int
    marker_tokens: int = 0
    rows: int = 0
    cols: int = 0
    token_grid: tuple[int, int] = (0, 0)
    grid_thw: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class TokenGeometry:
    """What a family fixes about its views; as it stands, a family that shows an image in one view (LLaVA, PaliGemma).

    view_px: side of a square view.  grid: rows and columns of tokens that one view becomes after the projector.
    separator_tokens: text tokens that mark the start of each view.
    """

    view_px: int
    grid: tuple[int, int]
    separator_tokens: int = 0
    fixed_views: ClassVar[bool] = True
    """Whether every view is a square of view_px; otherwise it keeps the image's proportions, nearly at its size."""
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    @property
    def tokens_per_view(self) -> int:
        """Visual tokens of one view before any reduction."""
        return self.grid[0] * self.grid[1]

    @property
    def most_tiles(self) -> int:
        """Tiles beside the whole view that the family's own rules may cut from one image."""
        return 0

    def whole(self) -> Self:
        """The geometry that shows an image in one view."""
        return self

    def layout(self, image_px: Size) -> ImageLayout:
        """One view, whatever the image; raises BadInput for an image without pixels."""
        require_pixels(image_px)
        side = self.view_px
        return ImageLayout((side, side), (0, 0, side, side), 1, self.tokens_per_view, self.separator_tokens)


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
        cols, rows = self._arrangement(*require_pixels(image_px))
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

    def _canvas(self, width: int, height: int) -> Size:
        """Both edges up to a multiple of view_px, the longer one first, since the other is scaled along with it."""
        aspect = width / height
        if width >= height:
            width = _up_to_multiple(width, self.view_px)
            return width, max(self.view_px, _up_to_multiple(int(width / aspect), self.view_px))
        height = _up_to_multiple(height, self.view_px)
        return max(self.view_px, _up_to_multiple(int(height * aspect), self.view_px)), height


@dataclass(frozen=True, kw_only=True)
class QuarterGeometry(TokenGeometry):
    """Idefics2: views of any proportions between two edge lengths, each resampled to a fixed number of latents.

    split: four quarters and the whole image, else the whole alone.  boundary_tokens: one before the first view, one after each.
    """

    shortest_px: int
    longest_px: int
    split: bool = False
    fixed_views: ClassVar[bool] = False

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
            raise BadInput(f"an image of {width}x{height} px cannot be cut in four", remedy="give a larger image")
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


@dataclass(frozen=True, kw_only=True)
class PatchGeometry(TokenGeometry):
    """Qwen2-VL and Qwen2.5-VL: patches at nearly native size; merge x merge patches become one token.

    view_px and grid describe a square tile, for showing a global view and tiles as images of their own.
    """

    patch_px: int
    merge: int
    min_pixels: int
    max_pixels: int
    fixed_views: ClassVar[bool] = False

    def layout(self, image_px: Size) -> ImageLayout:
        """Example: 1344 x 896 px at 28 px a token -> 32 * 48 = 1536.  Raises BadInput beyond 200:1."""
        width, height = self._resized(*require_pixels(image_px))
        patches = height // self.patch_px, width // self.patch_px
        tokens = patches[0] // self.merge, patches[1] // self.merge
        return ImageLayout(
            canvas_px=(width, height),
            content=(0, 0, width, height),
            views=1,
            visual_tokens=tokens[0] * tokens[1],
            token_grid=tokens,
            grid_thw=(1, *patches),
        )

    def _resized(self, width: int, height: int) -> Size:
        if max(width, height) / min(width, height) > MAX_PATCH_ASPECT:
            raise BadInput(
                f"an image of {width}x{height} px is longer than {MAX_PATCH_ASPECT} times its width, "
                "which this model does not take",
                remedy="crop the image, or cut it in pieces",
            )
        step = self.patch_px * self.merge
        wide, high = round(width / step) * step, round(height / step) * step
        if wide * high > self.max_pixels:
            shrink = math.sqrt(width * height / self.max_pixels)
            return (
                max(step, math.floor(width / shrink / step) * step),
                max(step, math.floor(height / shrink / step) * step),
            )
        if wide * high < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (width * height))
            return math.ceil(width * grow / step) * step, math.ceil(height * grow / step) * step
        return wide, high


Geometry = TokenGeometry | AnyResGeometry | TileGeometry | SplitGeometry | QuarterGeometry | PatchGeometry


def visual_token_count(
    geometry: TokenGeometry, *, tiles: int | None = None, image_px: Size | None = None, images: int = 1
) -> int:
    """Prompt positions that `images` images take before any reduction, text tokens that mark views included.

    tiles: each image is one global view and that many tiles.  image_px: each image has that (width, height) and is cut
    by the family's own rules.  Exactly one of the two.  `geometry.layout(image_px)` gives visual and marker tokens apart.
    Raises BadInput for a size that the family refuses.

    Example: 64 tokens a view and one separator, 6 tiles -> 7 * 65 = 455.
    """
    if image_px is not None and tiles is None:
        layout = geometry.layout(image_px)
        return images * (layout.visual_tokens + layout.marker_tokens)
    if tiles is None or image_px is not None:
        raise TypeError("give either tiles or image_px")
    return images * (1 + tiles) * (geometry.tokens_per_view + geometry.separator_tokens)


def require_pixels(image_px: Size) -> Size:
    """(width, height) as given; raises BadInput unless both are at least 1."""
    if min(image_px) < 1:
        raise BadInput(f"an image of {image_px[0]}x{image_px[1]} px has no pixels", remedy="give an image with pixels")
    return image_px


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


def _up_to_multiple(value: int, step: int) -> int:
    return math.ceil(value / step) * step

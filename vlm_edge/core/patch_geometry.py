"""Families whose encoder takes an image as one row of patches, at nearly its own size."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from vlm_edge.core.layout import Cell, ImageLayout, Size, require_pixels
from vlm_edge.core.token_geometry import TokenGeometry
from vlm_edge.errors import BadInput

MAX_PATCH_ASPECT = 200
BETWEEN_IMAGES = 2
"""Markers that end one image and begin the next."""


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

    @property
    def most_choice(self) -> int:
        """Of a square image of the most pixels."""
        side = math.ceil(math.sqrt(self.max_pixels) / self.view_px)
        return side * side if side > 1 else 0

    def overview(self, image_px: Size) -> ImageLayout:
        """The whole image with about as many pixels as a tile."""
        return replace(self, max_pixels=max(self.min_pixels, self.view_px**2)).layout(image_px)

    def scales(self, image_px: Size) -> tuple[ImageLayout, ...]:
        """The image at the family's own size, in tiles of whole tokens; those at the right and lower edge may be smaller."""
        own = self.layout(image_px)
        rows, cols = (-(-tokens // side) for tokens, side in zip(own.token_grid, self.grid, strict=True))
        if rows * cols <= 1 or own.visual_tokens <= self.overview(image_px).visual_tokens:
            return ()
        return (replace(own, rows=rows, cols=cols, cell_tokens=self.grid),)

    def _subset(self, image_px: Size, scale: ImageLayout) -> ImageLayout:
        """Two runs: an overview, and of the image at its own size what lies in the cells, at the places that it has there.

        All of the image where that takes no more.
        """
        overview = self.overview(image_px)
        tokens = sum(self._cost(scale, cell)[0] for cell in scale.shown_cells)
        if overview.visual_tokens + tokens + BETWEEN_IMAGES >= scale.visual_tokens:
            return replace(scale, cells=None)
        return replace(
            scale, visual_tokens=overview.visual_tokens + tokens, marker_tokens=BETWEEN_IMAGES,
            parts=(overview, replace(scale, visual_tokens=tokens)),
        )  # fmt: skip

    def _cost(self, scale: ImageLayout, cell: Cell) -> tuple[int, int]:
        rows, cols = (
            min(side, tokens - index * side)
            for index, tokens, side in zip(cell, scale.token_grid, self.grid, strict=True)
        )
        return rows * cols, 0

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

"""What every family fixes about its views, and how tiles are chosen where it has a grid of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from vlm_edge.core.layout import Cell, ImageLayout, Size, require_pixels


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
    by_parts: ClassVar[bool] = True
    """Whether views are made of an image that comes in bands of rows, so that it need not be held as a whole."""
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    @property
    def tokens_per_view(self) -> int:
        """Visual tokens of one view before any reduction."""
        return self.grid[0] * self.grid[1]

    @property
    def most_tiles(self) -> int:
        """Tiles beside the whole view that the family's own rules may cut from one image."""
        return 0

    @property
    def most_choice(self) -> int:
        """Tiles beside the whole view that may be chosen from one image, unless a plan says how many fit."""
        return self.most_tiles

    def whole(self) -> Self:
        """The geometry that shows an image in one view."""
        return self

    def layout(self, image_px: Size) -> ImageLayout:
        """One view, whatever the image; raises BadInput for an image without pixels."""
        require_pixels(image_px)
        side = self.view_px
        return ImageLayout((side, side), (0, 0, side, side), 1, self.tokens_per_view, self.separator_tokens)

    def scales(self, image_px: Size) -> tuple[ImageLayout, ...]:  # noqa: ARG002
        """Grids of an image from which single tiles may be chosen, the finest first; none where there is but one view."""
        return ()

    def subset(self, image_px: Size, scale: ImageLayout, cells: Sequence[Cell]) -> ImageLayout:
        """One of `scales` with some of its tiles alone, row by row, beside the view of the whole image.

        All tiles: the scale as it is.  None: the whole image alone, at the least that the family shows of it.
        """
        chosen = tuple(sorted(set(cells)))
        if outside := [cell for cell in chosen if not (0 <= cell[0] < scale.rows and 0 <= cell[1] < scale.cols)]:
            raise ValueError(f"cell {outside[0]} lies outside {scale.rows} x {scale.cols}")
        if len(chosen) == scale.rows * scale.cols:
            return scale
        return self._subset(image_px, replace(scale, cells=chosen)) if chosen else self.overview(image_px)

    def overview(self, image_px: Size) -> ImageLayout:
        """The whole image in one view, without tiles."""
        return self.whole().layout(image_px)

    def most(self, image_px: Size, tiles: int) -> ImageLayout:
        """What that many tiles of an image take at most, whichever are chosen and of whichever scale: the plan of a choice."""
        scales = self.scales(image_px)
        if not scales:
            return self.layout(image_px)
        dearest = [self.subset(image_px, scale, self._dearest(scale, tiles)) for scale in scales]
        dearest.append(self.overview(image_px))
        longest = max(dearest, key=lambda layout: layout.positions)
        return replace(longest, views=max(layout.views for layout in dearest))

    def _dearest(self, scale: ImageLayout, tiles: int) -> list[Cell]:
        """The choice that takes most: each row's first tile brings what a row costs, and its largest comes first."""
        gains: list[tuple[int, Cell]] = []
        for row in range(scale.rows):
            cells = [(self._cost(scale, (row, col)), (row, col)) for col in range(scale.cols)]
            cells.sort(key=lambda costed: -costed[0][0])
            gains += [(own + (once if i == 0 else 0), cell) for i, ((own, once), cell) in enumerate(cells)]
        gains.sort(key=lambda gain: -gain[0])
        return [cell for _, cell in gains[:tiles]]

    def _subset(self, image_px: Size, scale: ImageLayout) -> ImageLayout:  # noqa: ARG002
        """A scale whose cells are chosen, with its counts; here every tile is a view as any other."""
        views = 1 + len(scale.shown_cells)
        return replace(scale, views=views, visual_tokens=views * self.tokens_per_view)

    def _cost(self, scale: ImageLayout, cell: Cell) -> tuple[int, int]:  # noqa: ARG002
        """Positions that a tile takes, and those that its row takes once."""
        return self.tokens_per_view, 0


def up_to_multiple(value: int, step: int) -> int:
    """The next multiple of `step`."""
    return math.ceil(value / step) * step

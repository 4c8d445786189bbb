"""How many visual tokens an image costs: the one function that planner and runtime both call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class TokenGeometry:
    """What a family fixes about its views.

    view_px: side of a square view.  grid: rows and columns of tokens that one view becomes after the projector.
    separator_tokens: text tokens that mark the start of each view.
    """

    view_px: int
    grid: tuple[int, int]
    separator_tokens: int = 0
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    @property
    def tokens_per_view(self) -> int:
        """Visual tokens of one view before any reduction."""
        return self.grid[0] * self.grid[1]


def visual_token_count(geometry: TokenGeometry, *, tiles: int, images: int = 1) -> int:
    """Prompt positions that `images` images take, each one global view and `tiles` tiles, before any reduction.

    Example: 64 tokens a view and one separator, 6 tiles -> 7 * 65 = 455.
    """
    return images * (1 + tiles) * (geometry.tokens_per_view + geometry.separator_tokens)

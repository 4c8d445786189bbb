"""What an engine is built for: how many views, of what shape, with how much workspace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vlm_edge.core.bundle import Limits
from vlm_edge.errors import BadInput
from vlm_edge.units import MIB, format_bytes

LEAST_WORKSPACE_BYTES = 16 * MIB
"""Less is refused: TensorRT's documentation names this as the least to set."""


@dataclass(frozen=True)
class BuildSettings:
    """One optimisation profile, from one view to `max_views` of `view_shape` [3, S, S], fastest at `opt_views`.

    workspace_bytes: the most scratch memory that a layer may take, while building and while running; the plan's figure.
    tf32: lets matrix products of fp32 graphs round their inputs to 10 bits of mantissa, as TensorRT does by default. It
    is off here: the parity gate holds fp32 to a relative error of 1e-4, which TF32 cannot keep.
    """

    opt_views: int
    max_views: int
    view_shape: tuple[int, int, int]
    workspace_bytes: int
    input_name: str = "pixel_values"
    tf32: bool = False
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not 1 <= self.opt_views <= self.max_views:
            raise BadInput(
                f"an engine for 1 to {self.max_views} views cannot be fastest at {self.opt_views}",
                remedy="choose 1 <= opt_views <= max_views",
            )
        if min(self.view_shape) < 1:
            raise BadInput(f"{self.view_shape} is not the shape of a view", remedy="give channels, height and width")
        if self.workspace_bytes < LEAST_WORKSPACE_BYTES:
            raise BadInput(
                f"{format_bytes(self.workspace_bytes)} of workspace are too few for TensorRT",
                remedy=f"leave it {format_bytes(LEAST_WORKSPACE_BYTES)} or more",
            )

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The input's least, best and largest shape, [views, 3, S, S] each."""
        return (1, *self.view_shape), (self.opt_views, *self.view_shape), (self.max_views, *self.view_shape)


def settings_for(
    limits: Limits, *, image_px: int, workspace_bytes: int, views_in_call: int | None = None
) -> BuildSettings:
    """Settings from a recipe's limits: 1 view at least, 1 + max_tiles / 2 at best, 1 + max_tiles at most.

    views_in_call: a cap on what one call takes, where the plan counts fewer views than that; the runner cuts more views
    into several calls.
    """
    most = 1 + limits.max_tiles
    most = most if views_in_call is None else min(most, views_in_call)
    best = min(1 + limits.max_tiles // 2, most)
    return BuildSettings(best, most, (3, image_px, image_px), workspace_bytes)

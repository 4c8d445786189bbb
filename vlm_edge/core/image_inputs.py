"""What a family's preprocessing makes of one image, for its encoder and for the splicing that follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm_edge.core.geometry import Box, ImageLayout

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ImageInputs:
    """An image, ready for the encoder.

    arrays: by the name that the encoder's graph gives its inputs; a graph may have fewer inputs, never others.
      pixel_values float32 [V, 3, H, W], or [T, C * t * p * p] for packed patches; masks and indices where a family has them.
    boxes: (x0, y0, x1, y1) in source px that each view shows, rounded outwards and clipped to the image; a view that
      holds nothing but padding has a box without area.
    layout: how the image was cut, which is what splicing needs.
    frame: what the view of the whole image spans in source px, neither rounded nor clipped: it reaches past the image where that
      was padded; None where the largest of boxes says it.
    """

    arrays: Mapping[str, NDArray[Any]]
    boxes: tuple[Box, ...]
    layout: ImageLayout
    frame: tuple[float, float, float, float] | None = None

    @property
    def visual_tokens(self) -> int:
        """Embeddings that the encoder's output becomes in the prompt."""
        return self.layout.visual_tokens

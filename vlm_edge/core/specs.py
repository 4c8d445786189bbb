"""What a model is made of, in the numbers that planning and running need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vlm_edge.core.geometry import TokenGeometry

_STRICT = {"extra": "forbid"}


@dataclass(frozen=True)
class VisionSpec:
    """A ViT: `width` is its hidden size, `mlp` the inner size of its feed-forward layers."""

    width: int
    layers: int
    heads: int
    mlp: int
    image_px: int
    patch_px: int
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    @property
    def patches(self) -> int:
        """Patches of one view, the class token not counted."""
        return (self.image_px // self.patch_px) ** 2


@dataclass(frozen=True)
class ProjectorSpec:
    """An MLP from the tower's width through `hidden` to the decoder's width."""

    input: int
    hidden: int
    output: int
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT


@dataclass(frozen=True)
class TextSpec:
    """A decoder-only transformer with grouped-query attention and a gated MLP."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    max_positions: int
    tied_embeddings: bool = False
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT


@dataclass(frozen=True)
class ModelSpec:
    """A whole vision-language model of one family."""

    family: str
    vision: VisionSpec
    projector: ProjectorSpec
    text: TextSpec
    geometry: TokenGeometry
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

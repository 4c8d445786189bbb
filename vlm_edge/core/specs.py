"""What a model is made of, in the numbers that planning and running need.

A manifest carries these records, and its hash covers them. Fields that came later are declared with `_later`: they stay
out of a manifest while they hold their default, so that manifests written before them keep their hash.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

from vlm_edge.core.geometry import Geometry
from vlm_edge.core.load import OMIT_DEFAULT

_STRICT = {"extra": "forbid"}
T = TypeVar("T")


def _later(default: T) -> T:
    """A field that older manifests do not have."""
    return field(default=default, metadata=OMIT_DEFAULT)


@dataclass(frozen=True)
class VisionSpec:
    """A ViT, as far as it runs.

    width: its hidden size.  layers: those that run; layers behind the last one whose output is read are left out.
    mlp: inner size of the feed-forward layers.  gated_mlp: they have a gate and an up projection of that size.
    prefix_tokens: class token and registers, in front of the patches.  temporal_patch: frames in a patch (an image is
    repeated to fill them).
    window_px: side of an attention window, 0 when every layer attends to the whole view; full_attention_layers: the
    layers that do so where others have windows.
    joint_views: views of one image that attend to each other, padded to that number.
    parameters: weights that an export holds: embeddings, the layers that run, and a norm behind them only where the
    projector reads its output. Pooling heads and mask tokens are not among them. 0: not known (a manifest of old).
    """

    width: int
    layers: int
    heads: int
    mlp: int
    image_px: int
    patch_px: int
    gated_mlp: bool = _later(False)
    prefix_tokens: int = _later(1)
    temporal_patch: int = _later(1)
    window_px: int = _later(0)
    full_attention_layers: tuple[int, ...] = _later(())
    joint_views: int = _later(1)
    parameters: int = _later(0)
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    @property
    def patches(self) -> int:
        """Patches of one view, the class token not counted."""
        return (self.image_px // self.patch_px) ** 2


@dataclass(frozen=True)
class ProjectorSpec:
    """From the tower's width through `hidden` to the decoder's width.

    input: values of one input token, after `merge` x `merge` patches were joined or several layers' outputs stacked.
    hidden: inner size; 0 for a single linear layer.  kind: "mlp", "linear", "pixel_shuffle", "patch_merger", "perceiver".
    parameters: weights of all of it; 0: not known (a manifest of old).
    """

    input: int
    hidden: int
    output: int
    kind: str = _later("mlp")
    merge: int = _later(1)
    parameters: int = _later(0)
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT


@dataclass(frozen=True)
class TextSpec:
    """A decoder-only transformer with grouped-query attention and a gated MLP.

    architecture: the text model's own model_type, such as "llama".
    embedding_parameters, lm_head_parameters: the latter is 0 when tied, since the embedding serves twice.
    linear_parameters: weights of all linear layers in the decoder layers: what AWQ packs.  other_parameters: norms,
    biases and gates.  All four are 0 in a manifest of old.
    sliding_window: tokens that a layer of sliding_layers looks back; 0 when none does.
    mrope_sections: halves of head_dim that turn by time, row and column; empty for one-dimensional positions.
    cross_attention_layers: layers that read visual tokens as keys and values in place of the sequence's own.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    max_positions: int
    tied_embeddings: bool = False
    architecture: str = _later("")
    embedding_parameters: int = _later(0)
    lm_head_parameters: int = _later(0)
    linear_parameters: int = _later(0)
    other_parameters: int = _later(0)
    sliding_window: int = _later(0)
    sliding_layers: tuple[int, ...] = _later(())
    qk_norm: bool = _later(False)
    bidirectional_prefix: bool = _later(False)
    mrope_sections: tuple[int, ...] = _later(())
    cross_attention_layers: tuple[int, ...] = _later(())
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    @property
    def parameters(self) -> int:
        """All weights, the embedding once if it is tied."""
        return self.embedding_parameters + self.lm_head_parameters + self.linear_parameters + self.other_parameters


@dataclass(frozen=True)
class ModelSpec:
    """A whole vision-language model of one family."""

    family: str
    vision: VisionSpec
    projector: ProjectorSpec
    text: TextSpec
    geometry: Geometry
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    @property
    def parameters(self) -> int:
        """Weights of the three parts as an export holds them."""
        return self.vision.parameters + self.projector.parameters + self.text.parameters

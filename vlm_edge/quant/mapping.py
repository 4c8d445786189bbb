"""Which scales fold into what: a table for each text architecture.

Names are those of transformers' decoder layer, relative to it, so nothing outside the language model can match.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from vlm_edge.errors import BadInput

Fold = Literal["none", "norm", "shifted_norm", "rows"]


@dataclass(frozen=True)
class ScalePair:
    """Linear layers that read one input, and what the inverse of their scales is folded into.

    source: a norm, or a linear layer whose last rows make that input (behind an elementwise product or a weighted mean of
    positions, which a scale for each channel passes through).  fold: "shifted_norm" multiplies by 1 + weight; "none" leaves the
    linears unscaled.  inspect: the module whose output judges a scale: the block up to the next point where it is linear again,
    or the linear layer itself.
    """

    source: str
    linears: tuple[str, ...]
    inspect: str
    fold: Fold


@dataclass(frozen=True)
class Architecture:
    """The pairs of a decoder layer, which name every linear layer once, and those whose weights are not clipped.

    Queries and keys meet in a product of two rounded layers, so the error of one alone says little about a clip.
    """

    pairs: tuple[ScalePair, ...]
    unclipped: frozenset[str] = frozenset({"self_attn.q_proj", "self_attn.k_proj"})


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")


def _gated(norm: Fold, before_mlp: str) -> Architecture:
    return Architecture(
        (
            ScalePair("input_layernorm", _QKV, "self_attn", norm),
            ScalePair("self_attn.v_proj", ("self_attn.o_proj",), "self_attn.o_proj", "rows"),
            ScalePair(before_mlp, _GATE_UP, "mlp", norm),
            ScalePair("mlp.up_proj", ("mlp.down_proj",), "mlp.down_proj", "rows"),
        )
    )


_LLAMA = _gated("norm", "post_attention_layernorm")
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen2_vl_text": _LLAMA,
    "qwen2_5_vl_text": _LLAMA,
    "gemma": _gated("shifted_norm", "post_attention_layernorm"),
    # Its post-norms normalise what o_proj and down_proj give; the norm in front of the MLP has another name.
    "gemma2": _gated("shifted_norm", "pre_feedforward_layernorm"),
    # Values are the last rows of qkv_proj, up the last half of gate_up_proj.
    "phi3": Architecture(
        (
            ScalePair("input_layernorm", ("self_attn.qkv_proj",), "self_attn", "norm"),
            ScalePair("self_attn.qkv_proj", ("self_attn.o_proj",), "self_attn.o_proj", "rows"),
            ScalePair("post_attention_layernorm", ("mlp.gate_up_proj",), "mlp", "norm"),
            ScalePair("mlp.gate_up_proj", ("mlp.down_proj",), "mlp.down_proj", "rows"),
        ),
        unclipped=frozenset({"self_attn.qkv_proj"}),
    ),
}
"""By the text model's own model_type."""


def architecture_of(kind: str) -> Architecture:
    """The table's entry for a text model's model_type; raises BadInput that says what a new one needs."""
    if kind not in ARCHITECTURES:
        near = difflib.get_close_matches(kind, ARCHITECTURES, n=1)
        hint = f"the nearest known one is {near[0]!r}; " if near else ""
        raise BadInput(
            f"text models of type {kind!r} cannot be quantized",
            remedy=f"{hint}known: {', '.join(sorted(ARCHITECTURES))}; a new one needs its scale pairs in "
            "vlm_edge/quant/mapping.py: the norm or layer in front of each group of linear layers",
        )
    return ARCHITECTURES[kind]


def resolve(architecture: Architecture, layer: nn.Module, config: Any) -> tuple[ScalePair, ...]:
    """The pairs of one decoder layer as it is; those whose scales fit nowhere become "none".

    config: the text model's. Values fold only into an output projection that reads each value head once: under grouped-query
    attention one value row feeds several inputs, which would need one common scale.
    Raises BadInput for a linear layer that no pair names.
    """
    found = linear_layers(layer)
    named = {name for pair in architecture.pairs for name in pair.linears}
    if strange := sorted(found.keys() ^ named):
        raise BadInput(
            f"{type(layer).__name__} and its scale pairs disagree on the linear layer {strange[0]}",
            remedy="correct its entry in vlm_edge/quant/mapping.py",
        )
    heads = config.num_attention_heads
    grouped = (getattr(config, "num_key_value_heads", None) or heads) != heads
    pairs = []
    for pair in architecture.pairs:
        attends = pair.fold == "rows" and pair.source.startswith("self_attn.")
        pairs.append(replace(pair, fold="none") if attends and grouped else pair)
    return tuple(pairs)


def linear_layers(layer: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers below a decoder layer, by their names relative to it."""
    return {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}

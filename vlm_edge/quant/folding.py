"""Moves the inverse of input scales into whatever makes that input, so that a layer computes what it did before."""

from __future__ import annotations

import torch
from torch import nn

from vlm_edge.quant.mapping import ScalePair

STORED = torch.float16
"""How norms and biases are written, and so how they must be counted here."""


def fold(
    pair: ScalePair, layer: nn.Module, scales: torch.Tensor, *, stored: torch.dtype | None = STORED
) -> torch.Tensor:
    """Multiply the columns of the pair's linears by scales [in], and divide what makes their input by them; in place.

    stored: a norm's new weight is rounded to it, and the columns are multiplied by the scales that this leaves in effect, so the
    layer's function keeps to float32's precision; None rounds nothing.  Returns the scales in effect.
    """
    source = layer.get_submodule(pair.source)
    scales = _fold_norm(pair, source, scales, stored) if "norm" in pair.fold else _fold_rows(source, scales)
    for name in pair.linears:
        layer.get_submodule(name).weight.data.mul_(scales)
    return scales


def _fold_norm(pair: ScalePair, norm: nn.Module, scales: torch.Tensor, stored: torch.dtype | None) -> torch.Tensor:
    offset = 1.0 if pair.fold == "shifted_norm" else 0.0
    before = norm.weight.data + offset
    after = before / scales - offset
    if stored is not None:
        after = after.to(stored).float()
    norm.weight.data = after
    in_effect = before / (after + offset)
    # A channel that the norm silences has no ratio, and needs none.
    usable = in_effect.isfinite() & (in_effect > 0)
    return torch.where(usable, in_effect, scales)


def _fold_rows(source: nn.Module, scales: torch.Tensor) -> torch.Tensor:
    """The last rows make the input: all of them, or a fused layer's values or up-projection."""
    count = scales.shape[0]
    source.weight.data[-count:] /= scales[:, None]
    if source.bias is not None:
        source.bias.data[-count:] /= scales
    return scales

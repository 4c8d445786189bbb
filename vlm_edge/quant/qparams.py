"""Scales, zero points and codes of grouped weight rounding: pure functions of tensors.

A weight [out, in] is cut along `in` into groups; each group of each row has one scale and one zero point:
w ~ (code - zero) * scale, with codes 0 .. 2^bits - 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

MIN_RANGE = 1e-5
"""Least range of a group, so that one of zeros has a scale (AutoAWQ's value)."""
GROUP_SIZES = (128, 64, 32)
BITS = (4, 3, 2)


@dataclass(frozen=True)
class Scheme:
    """How weights are rounded.

    bits: 4 in use; 3 and 2 show what a scheme loses when it has to lose.  group_size: inputs that share a scale.
    symmetric: the zero point is the middle code of every group, instead of one that fits the group's range.
    """

    bits: int = 4
    group_size: int = 128
    symmetric: bool = False

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1


@dataclass(frozen=True)
class Quantized:
    """A rounded weight: codes uint8 [out, in]; scale float16 and zero uint8, [out, in / group] each."""

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor

    def dequantized(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """(code - zero) * scale as [out, in].

        In float32 that is exact: at most 4 bits times 11. In float16 it is rounded once, as AutoAWQ's loader does.
        """
        rows, groups = self.scale.shape
        whole = self.codes.view(rows, groups, -1).to(dtype) - self.zero.to(dtype)[..., None]
        return (whole * self.scale.to(dtype)[..., None]).view(rows, -1)


def group_params(grouped: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, zero) as float32 [..., 1] for weights [..., group]; each scale is one that float16 holds.

    With a zero point: scale = max(high - low, 1e-5) / top, zero = clamp(-round(low / scale), 0, top), AutoAWQ's quantizer, where
    low and high are the group's least and largest value and 0: a group of one sign, which that quantizer clips to its range
    seen from 0, keeps its values here. Symmetric: scale = max|w| / (2^(bits - 1) - 1), and the zero is the middle code.
    """
    half = 1 << (scheme.bits - 1)
    if scheme.symmetric:
        high = grouped.abs().amax(-1, keepdim=True).clamp(min=MIN_RANGE)
        scale = (high / (half - 1)).half().float()
        return scale, torch.full_like(scale, half)
    low = grouped.amin(-1, keepdim=True).clamp(max=0)
    high = grouped.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low).clamp(min=MIN_RANGE) / scheme.top).half().float()
    return scale, (-torch.round(low / scale)).clamp(0, scheme.top)


def quantize(weight: torch.Tensor, scheme: Scheme) -> Quantized:
    """Round a float32 weight [out, in] to the nearest codes; `in` must be a multiple of the group size."""
    grouped = weight.view(weight.shape[0], -1, scheme.group_size)
    scale, zero = group_params(grouped, scheme)
    codes = torch.div(grouped, scale).round_().add_(zero).clamp_(0, scheme.top)
    return Quantized(
        codes.to(torch.uint8).view(weight.shape), scale.squeeze(-1).half(), zero.squeeze(-1).to(torch.uint8)
    )


def rounded(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """`quantize(weight, scheme).dequantized()` bit for bit, without making codes: the inner step of every search."""
    grouped = weight.view(*weight.shape[:-1], -1, scheme.group_size)
    scale, zero = group_params(grouped, scheme)
    codes = torch.div(grouped, scale).round_().add_(zero).clamp_(0, scheme.top)
    return codes.sub_(zero).mul_(scale).view(weight.shape)


def group_sizes_for(width: int) -> tuple[int, ...]:
    """The group sizes that divide a width; empty where none does."""
    return tuple(size for size in GROUP_SIZES if width % size == 0)

"""MatMulNBits layout, ONNX Runtime's operator for weights of 4 or 8 bits in blocks along the input dimension.

    B uint8 [out, in / block, block * bits / 8]   scales [out, in / block]   zero_points uint8 [out, ceil(in / block * bits / 8)]

Two 4-bit codes share a byte, the first in the low nibble; a row of zero points with an odd count ends in an unused nibble.
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md, com.microsoft.MatMulNBits)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vlm_edge.quant.qparams import Quantized

WIDTHS = (4, 8)


@dataclass(frozen=True)
class Blocks:
    """A weight [out, in] in that layout.  bits: of a code; block: inputs that share a scale."""

    weight: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor
    bits: int
    block: int
    inputs: int

    @property
    def outputs(self) -> int:
        """Rows of the weight."""
        return int(self.weight.shape[0])


def to_blocks(quantized: Quantized, bits: int = 4) -> Blocks:
    """Codes of up to `bits` bits (4 or 8) with their scales as float16; raises ValueError for another width."""
    if bits not in WIDTHS:
        raise ValueError(f"MatMulNBits holds codes of 4 or 8 bits, not {bits}")
    outputs, inputs = quantized.codes.shape
    groups = quantized.scale.shape[1]
    weight, zeros = quantized.codes, quantized.zero
    if bits == 4:
        weight, zeros = _nibbles(weight), _nibbles(_even(zeros))
    return Blocks(
        weight.reshape(outputs, groups, -1).contiguous(), quantized.scale, zeros, bits, inputs // groups, inputs
    )


def stacked(parts: Sequence[Blocks]) -> Blocks:
    """Weights that read one input as a single one, rows below rows; raises ValueError unless they are cut alike."""
    first = parts[0]
    if any((part.bits, part.block, part.inputs) != (first.bits, first.block, first.inputs) for part in parts):
        raise ValueError("weights that differ in width, block or inputs cannot be stacked")
    return Blocks(
        torch.cat([part.weight for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat([part.zero_points for part in parts]),
        first.bits, first.block, first.inputs,
    )  # fmt: skip


def _even(codes: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(codes, (0, codes.shape[1] % 2))


def _nibbles(codes: torch.Tensor) -> torch.Tensor:
    """uint8 [rows, 2n] of 0..15 -> uint8 [rows, n]."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)

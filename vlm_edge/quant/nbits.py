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
    """A weight [out, in] in that layout.  bits: of a code; block: inputs that share a scale.

    zero_points: None where every one is the middle code, which the operator takes for granted and is quicker without.
    """

    weight: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None
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
    weight = _nibbles(quantized.codes) if bits == 4 else quantized.codes
    plain = bool((quantized.zero == 1 << (bits - 1)).all())
    return Blocks(
        weight.reshape(outputs, groups, -1).contiguous(), quantized.scale, None if plain else _packed(quantized.zero, bits),
        bits, inputs // groups, inputs,
    )  # fmt: skip


def stacked(parts: Sequence[Blocks]) -> Blocks:
    """Weights that read one input as a single one, rows below rows; raises ValueError unless they are cut alike."""
    first = parts[0]
    if any((part.bits, part.block, part.inputs) != (first.bits, first.block, first.inputs) for part in parts):
        raise ValueError("weights that differ in width, block or inputs cannot be stacked")
    plain = all(part.zero_points is None for part in parts)
    return Blocks(
        torch.cat([part.weight for part in parts]),
        torch.cat([part.scales for part in parts]),
        None if plain else torch.cat([zero_points(part) for part in parts]),
        first.bits, first.block, first.inputs,
    )  # fmt: skip


def zero_points(blocks: Blocks) -> torch.Tensor:
    """Every zero point of a weight, those that it leaves out as well."""
    if blocks.zero_points is not None:
        return blocks.zero_points
    return _packed(torch.full(blocks.scales.shape, 1 << (blocks.bits - 1), dtype=torch.uint8), blocks.bits)


def _packed(zeros: torch.Tensor, bits: int) -> torch.Tensor:
    return _nibbles(_even(zeros)) if bits == 4 else zeros


def _even(codes: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(codes, (0, codes.shape[1] % 2))


def _nibbles(codes: torch.Tensor) -> torch.Tensor:
    """uint8 [rows, 2n] of 0..15 -> uint8 [rows, n]."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)

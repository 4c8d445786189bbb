"""AutoAWQ's GEMM layout: eight 4-bit codes of neighbouring outputs in one int32 word.

    qweight int32 [in, out / 8]   qzeros int32 [in / group, out / 8]   scales float16 [in / group, out]

Nibble i of word c, counted from the least significant, holds output 8c + ORDER[i]. Zero points are stored as they are.
Codes of fewer than four bits fit into the same nibbles, and the same formula reads them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vlm_edge.quant.qparams import Quantized

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
INVERSE = tuple(ORDER.index(i) for i in range(8))
PER_WORD = len(ORDER)
SUFFIXES = ("qweight", "qzeros", "scales")
_HIGHEST = 15


def pack_words(codes: torch.Tensor) -> torch.Tensor:
    """uint8 [rows, columns] of 0..15, columns a multiple of 8 -> int32 [rows, columns / 8]."""
    nibbles = codes.view(codes.shape[0], -1, PER_WORD)[..., list(ORDER)]
    pairs = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
    return pairs.contiguous().view(torch.int32).squeeze(-1)


def unpack_words(words: torch.Tensor) -> torch.Tensor:
    """int32 [rows, words] -> uint8 [rows, 8 * words], the exact inverse of `pack_words`."""
    pairs = words.contiguous().view(torch.uint8).view(words.shape[0], words.shape[1], 4)
    nibbles = torch.stack((pairs & _HIGHEST, pairs >> 4), dim=-1).view(*words.shape, PER_WORD)
    return nibbles[..., list(INVERSE)].reshape(words.shape[0], -1)


def to_gemm(quantized: Quantized) -> dict[str, torch.Tensor]:
    """The three tensors of a linear layer, by SUFFIXES."""
    return {
        "qweight": pack_words(quantized.codes.t().contiguous()),
        "qzeros": pack_words(quantized.zero.t().contiguous()),
        "scales": quantized.scale.t().contiguous(),
    }


def from_gemm(tensors: Mapping[str, torch.Tensor]) -> Quantized:
    """The inverse of `to_gemm`."""
    return Quantized(
        codes=unpack_words(tensors["qweight"]).t().contiguous(),
        scale=tensors["scales"].t().contiguous(),
        zero=unpack_words(tensors["qzeros"]).t().contiguous(),
    )

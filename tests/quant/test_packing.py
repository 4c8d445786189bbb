"""AutoAWQ's GEMM layout against its definition, one nibble at a time."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_edge.quant.packing import from_gemm, pack_words, to_gemm, unpack_words
from vlm_edge.quant.qparams import Scheme, quantize

shapes = st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(0, 10_000))


def codes_of(rows: int, words: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 16, (rows, 8 * words), generator=generator, dtype=torch.uint8)


@given(shapes)
@settings(max_examples=50, deadline=None)
def test_unpacking_is_the_inverse(shape: tuple[int, int, int]) -> None:
    codes = codes_of(*shape)
    words = pack_words(codes)
    assert words.dtype is torch.int32
    assert torch.equal(unpack_words(words), codes)


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_every_word_comes_back(words: list[int]) -> None:
    packed = torch.tensor([words], dtype=torch.int32)
    assert torch.equal(pack_words(unpack_words(packed)), packed)


@given(shapes)
@settings(max_examples=30, deadline=None)
def test_a_word_holds_the_nibbles_that_the_layout_says(shape: tuple[int, int, int]) -> None:
    codes = codes_of(*shape)
    words = pack_words(codes)
    for row in range(words.shape[0]):
        for c in range(words.shape[1]):
            expected = 0
            for i, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                expected |= int(codes[row, 8 * c + column]) << (4 * i)
            assert int(words[row, c]) & 0xFFFFFFFF == expected


def test_a_layer_becomes_three_tensors_and_comes_back() -> None:
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(0))
    quantized = quantize(weight, Scheme(group_size=32))
    tensors = to_gemm(quantized)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == {"qweight": (96, 3), "qzeros": (3, 3), "scales": (3, 24)}
    assert [tensors[name].dtype for name in ("qweight", "qzeros", "scales")] == [
        torch.int32,
        torch.int32,
        torch.float16,
    ]
    back = from_gemm(tensors)
    assert torch.equal(back.codes, quantized.codes)
    assert torch.equal(back.zero, quantized.zero)
    assert torch.equal(back.dequantized(), quantized.dequantized())

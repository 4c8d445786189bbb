"""Caches: GQA, scales, windows and cross-attention against slow sums."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.memory.subjects import VICUNA_7B, text
from vlm_edge.core.specs import TextSpec
from vlm_edge.memory.formulas import cross_cache_bytes, decode_buffer_bytes, kv_cache_bytes


def slow_cache(spec: TextSpec, tokens: int, bits: int, *, scales: bool, windowed: bool) -> int:
    """Layer by layer, token by token, head by head."""
    total = 0
    for layer in range(spec.layers):
        if layer in spec.cross_attention_layers:
            continue
        kept = min(tokens, spec.sliding_window) if windowed and layer in spec.sliding_layers else tokens
        for _ in range(kept):
            total += 2 * spec.kv_heads * (spec.head_dim * bits // 8 + (4 if scales else 0))
    return total


@given(
    st.integers(0, 90), st.sampled_from([4, 8, 16, 32]), st.booleans(), st.booleans(),
    st.sets(st.integers(0, 4)), st.integers(0, 50), st.sets(st.integers(5, 7)),
)  # fmt: skip
def test_every_cache_is_a_sum(
    tokens: int, bits: int, scales: bool, windowed: bool, sliding: set[int], window: int, crossing: set[int]
) -> None:
    spec = replace(
        text(64, 64, 8, 4, 2, 10), sliding_layers=tuple(sorted(sliding)) if window else (), sliding_window=window,
        cross_attention_layers=tuple(sorted(crossing)),
    )  # fmt: skip
    found = kv_cache_bytes(spec, tokens=tokens, elem_bits=bits, scales=scales, windowed=windowed)
    assert found == slow_cache(spec, tokens, bits, scales=scales, windowed=windowed)
    assert kv_cache_bytes(spec, tokens=tokens, batch=3, elem_bits=bits, scales=scales, windowed=windowed) == 3 * found


@pytest.mark.parametrize(("bits", "share"), [(8, 0.516), (4, 0.266)])
def test_shares_of_a_quantized_cache(bits: int, share: float) -> None:
    full = kv_cache_bytes(VICUNA_7B, tokens=4096)
    assert full == 4096 * 524_288
    assert kv_cache_bytes(VICUNA_7B, tokens=4096, elem_bits=bits, scales=True) / full == pytest.approx(share, abs=5e-4)
    assert kv_cache_bytes(VICUNA_7B, tokens=4096, elem_bits=bits) * 16 == full * bits


def test_the_quoted_cache_of_4k_tokens_at_4_bits() -> None:
    assert kv_cache_bytes(VICUNA_7B, tokens=4096, elem_bits=4, scales=True) / 1e9 == pytest.approx(0.57, abs=0.01)


def test_cross_attention_keeps_visual_tokens_in_its_own_layers() -> None:
    llama = replace(text(4096, 14336, 40, 32, 8, 128256), cross_attention_layers=(3, 8, 13, 18, 23, 28, 33, 38))
    assert cross_cache_bytes(llama, tokens=6404) == 2 * 8 * 8 * 128 * 6404 * 2
    assert kv_cache_bytes(llama, tokens=100) == 2 * 32 * 8 * 128 * 100 * 2


def test_decode_buffers_grow_with_the_batch() -> None:
    one = decode_buffer_bytes(VICUNA_7B)
    assert one == 4 * (9 * 4096 + 6 * 11008 + 2 * 3 * 4096) + 3 * 8 * 32000
    assert decode_buffer_bytes(VICUNA_7B, batch=5) == 5 * one

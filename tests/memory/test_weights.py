"""Bytes of weights against tensors written down one by one and published totals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.memory.subjects import CLIP_L_336, LLAVA, VICUNA_7B, text
from vlm_edge.errors import BadInput
from vlm_edge.memory import weights


def awq_file_bytes(inputs: int, outputs: int, group: int) -> int:
    """AutoAWQ's three tensors of a layer: int32 words of eight 4-bit numbers, fp16 scales."""
    return 4 * inputs * (outputs // 8) + 4 * (inputs // group) * (outputs // 8) + 2 * (inputs // group) * outputs


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([32, 64, 128]))
def test_a_layer_has_the_bytes_of_its_tensors(groups: int, words: int, group: int) -> None:
    inputs, outputs = groups * group, 8 * words
    assert weights.grouped_bytes(inputs, outputs, bits=4, group_size=group) == awq_file_bytes(inputs, outputs, group)


@pytest.mark.parametrize(("group", "bits"), [(128, 4.156), (64, 4.312), (32, 4.625)])
def test_bits_of_a_weight(group: int, bits: float) -> None:
    packed = weights.grouped_bytes(4096, 4096, bits=4, group_size=group)
    assert 8 * packed / 4096**2 == pytest.approx(bits, abs=5e-4)


def test_a_decoder_is_the_sum_of_its_layers() -> None:
    hidden, inner, kv = 512, 1024, 128
    spec = text(hidden, inner, 3, 8, 2, 1000)
    shapes = [
        (hidden, hidden),
        (hidden, kv),
        (hidden, kv),
        (hidden, hidden),
        (hidden, inner),
        (hidden, inner),
        (inner, hidden),
    ]
    packed = 3 * sum(awq_file_bytes(rows, cols, 128) for rows, cols in shapes)
    assert weights.decoder_bytes(spec, weights="awq", group_size=128) == packed + 2 * 7 * hidden
    assert weights.decoder_bytes(spec, weights="fp16", group_size=128) == 2 * (
        3 * sum(rows * cols for rows, cols in shapes) + 7 * hidden
    )


@pytest.mark.parametrize(
    ("name", "spec", "gigabytes"),
    [
        ("Vicuna-7B", VICUNA_7B, 3.89),
        ("Vicuna-13B", text(5120, 13824, 40, 40, 40, 32000), 7.25),
        ("Qwen2.5-7B", text(3584, 18944, 28, 28, 4, 152064), 5.57),
        ("InternLM2.5-7B", text(4096, 14336, 32, 32, 8, 92544), 5.14),
        ("Qwen2.5-3B", text(2048, 11008, 36, 16, 2, 151936, tied=True), 2.06),
    ],
)
def test_published_totals_of_packed_models(name: str, spec: object, gigabytes: float) -> None:
    total = weights.decoder_bytes(spec, weights="awq", group_size=128)  # type: ignore[arg-type]
    total += weights.embedding_bytes(spec, weights="awq")  # type: ignore[arg-type]
    total += weights.lm_head_bytes(spec, lm_head="fp16", group_size=128)  # type: ignore[arg-type]
    assert total / 1e9 == pytest.approx(gigabytes, abs=0.006), name


def test_a_tied_head_costs_nothing_until_it_is_packed() -> None:
    tied = text(2048, 11008, 36, 16, 2, 151936, tied=True)
    assert weights.lm_head_bytes(tied, lm_head="fp16", group_size=128) == 0
    four = weights.lm_head_bytes(tied, lm_head="int4", group_size=128)
    assert four == awq_file_bytes(2048, 151936, 128)
    assert weights.lm_head_bytes(replace(tied, tied_embeddings=False), lm_head="int4", group_size=128) == four
    assert weights.lm_head_bytes(VICUNA_7B, lm_head="fp16", group_size=128) == 2 * 4096 * 32000


def test_groups_must_divide_every_layer() -> None:
    odd = text(576, 1536, 2, 9, 3, 100)
    with pytest.raises(BadInput, match="576") as caught:
        weights.check_groups(odd, 128)
    assert "--group-size 64" in caught.value.remedy
    weights.check_groups(odd, 64)
    with pytest.raises(BadInput) as caught:
        weights.check_groups(text(24, 40, 2, 3, 3, 100), 128)
    assert "--weights" in caught.value.remedy


def test_towers_at_each_dtype() -> None:
    assert weights.vision_bytes(CLIP_L_336, dtype="fp32") == 4 * CLIP_L_336.parameters
    assert weights.vision_bytes(CLIP_L_336, dtype="fp16") == 2 * CLIP_L_336.parameters
    matrices = 23 * (4 * 1024 * 1024 + 2 * 1024 * 4096)
    # a byte a weight, and a byte of zero point and two of scale for every 32
    packed = matrices + matrices // 32 * 3
    assert weights.vision_bytes(CLIP_L_336, dtype="int8") == packed + 4 * (CLIP_L_336.parameters - matrices)
    assert LLAVA.projector is not None
    inner = 1024 * 4096 + 4096 * 4096
    assert weights.projector_bytes(LLAVA.projector, dtype="int8") == inner + inner // 32 * 3 + 4 * (20_979_712 - inner)

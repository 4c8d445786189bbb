"""The plan's arithmetic on a 7B and a 1.1B shape, written out."""

from __future__ import annotations

from dataclasses import replace

from vlm_edge.memory.quantize_plan import Sizes, plan

GIB = 1 << 30
BASE = 400 << 20
LLAMA_7B = Sizes(
    layer=4 * 4096 * 4096 + 3 * 4096 * 11008, largest=4096 * 11008, hidden=4096, intermediate=11008, group_size=128,
    longest=512, states=32 * 512 * 4096, search_tokens=512,
)  # fmt: skip


def test_rounding_holds_one_layer() -> None:
    found = plan(LLAMA_7B, BASE, method="rtn")
    assert found.spilled == found.resident == BASE + LLAMA_7B.layer * 4 + LLAMA_7B.layer * 2 + 3 * LLAMA_7B.largest * 4
    assert found.spilled < 4 * GIB


def test_hidden_states_in_memory_cost_their_size() -> None:
    found = plan(LLAMA_7B, BASE, method="awq")
    assert found.resident - found.spilled == LLAMA_7B.states * 4


def test_a_longer_sequence_and_plain_attention_cost_more() -> None:
    first = plan(LLAMA_7B, BASE, method="awq")
    longer = plan(replace(LLAMA_7B, longest=1024), BASE, method="awq")
    eager = plan(replace(LLAMA_7B, head_scores=96), BASE, method="awq")
    assert longer.phases["observe"] - first.phases["observe"] == 512 * (4 * 11008 + 10 * 4096) * 4
    assert eager.phases["observe"] - first.phases["observe"] == 512 * 512 * 96 * 4


def test_a_tower_can_be_the_largest_part() -> None:
    found = plan(replace(LLAMA_7B, layer=1000, largest=100, tower=10**9), BASE, method="awq")
    assert found.spilled == found.phases["encode"] >= BASE + 4 * 10**9

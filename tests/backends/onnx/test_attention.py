"""Windows and directions of attention, set on graphs of bare attention nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

onnx = pytest.importorskip("onnx")

from onnx import helper  # noqa: E402

from vlm_edge.backends.onnx.attention import set_attention  # noqa: E402
from vlm_edge.core.specs import TextSpec  # noqa: E402
from vlm_edge.errors import CheckFailed  # noqa: E402

TEXT = TextSpec(hidden=8, layers=3, heads=1, kv_heads=1, head_dim=8, intermediate=8, vocab=9, max_positions=64)
OPERATOR = "GroupQueryAttention"


def graph(layers: tuple[int, ...] = (0, 1, 2), name: str = "/model/layers.{}/attn/GroupQueryAttention") -> Any:
    nodes = [
        helper.make_node(
            OPERATOR, ["q"], [f"o{layer}"], name=name.format(layer), domain="com.microsoft", num_heads=7,
            local_window_size=5,
        )
        for layer in layers
    ]  # fmt: skip
    nodes.insert(1, helper.make_node("Identity", ["o0"], ["x"], name="/model/layers.0/other"))
    return helper.make_model(helper.make_graph(nodes, "g", [], []))


def seen(model: Any) -> list[dict[str, int]]:
    return [{a.name: a.i for a in node.attribute} for node in model.graph.node if node.op_type == OPERATOR]


def test_windows_are_those_of_the_spec() -> None:
    model = graph()
    set_attention(model, replace(TEXT, sliding_window=24, sliding_layers=(0, 2)))
    assert [node["local_window_size"] for node in seen(model)] == [24, -1, 24]
    assert all(node["causal"] == 1 and node["num_heads"] == 7 for node in seen(model))
    assert [a.name for a in model.graph.node[1].attribute] == []


def test_a_prefix_both_ways_has_no_window() -> None:
    model = graph()
    set_attention(model, replace(TEXT, sliding_window=24, sliding_layers=(0, 2), bidirectional_prefix=True))
    assert [(node["local_window_size"], node["causal"]) for node in seen(model)] == [(-1, 0)] * 3


@pytest.mark.parametrize(
    "model", [graph((0, 1)), graph((0, 1, 2, 3)), graph((0, 0, 1)), graph(name="attention_{}")], ids=range(4)
)
def test_graphs_without_one_in_each_layer(model: Any) -> None:
    with pytest.raises(CheckFailed, match="GroupQueryAttention in"):
        set_attention(model, TEXT)

"""LLaVA specs against transformers' published configurations and parameter counts."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from vlm_edge.errors import BadInput
from vlm_edge.memory.formulas import kv_cache_bytes
from vlm_edge.models.llava.spec import spec_from_config

LLAVA_7B: dict[str, Any] = {
    "model_type": "llava",
    "vision_feature_layer": -2,
    "vision_config": {
        "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "num_attention_heads": 16,
        "num_hidden_layers": 24, "patch_size": 14,
    },
    "text_config": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32,
        "max_position_embeddings": 4096, "vocab_size": 32064,
    },
}  # fmt: skip


def test_llava_1_5_7b():
    spec = spec_from_config(LLAVA_7B)
    assert spec.geometry.tokens_per_view == 576
    assert spec.vision.layers == 23  # layer -2: the last block's output is never read
    assert (spec.text.kv_heads, spec.text.head_dim) == (32, 128)
    assert kv_cache_bytes(spec.text, tokens=1) == 524_288  # Vicuna-7B's published figure


@pytest.mark.parametrize(("layer", "used"), [(-1, 24), (-2, 23), (24, 24), (5, 5)])
def test_feature_layer(layer: int, used: int):
    assert spec_from_config(LLAVA_7B | {"vision_feature_layer": layer}).vision.layers == used


@pytest.mark.parametrize("path", ["vision_config", "text_config", "vision_config.patch_size", "text_config.vocab_size"])
def test_missing_fields_are_named(path: str):
    config = copy.deepcopy(LLAVA_7B)
    *parents, last = path.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    del place[last]
    with pytest.raises(BadInput, match=last):
        spec_from_config(config)


@pytest.mark.parametrize("value", ["many", None, []])
def test_values_that_are_no_numbers(value: object):
    config = copy.deepcopy(LLAVA_7B)
    config["text_config"]["num_hidden_layers"] = value
    with pytest.raises(BadInput):
        spec_from_config(config)

"""Qwen2.5-VL specs against transformers' own models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.census import TEXT, build, census, changed, of_spec, reached
from vlm_edge.errors import BadInput
from vlm_edge.models.qwen2_5_vl.spec import spec_from_config

# Qwen2.5-VL-7B-Instruct as published.
QWEN2_5_VL_7B: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings": 128000, "max_window_layers": 28,
    "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4, "sliding_window": 32768,
    "use_sliding_window": False, "tie_word_embeddings": False, "vocab_size": 152064,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "in_chans": 3,
        "out_hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2, "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31], "temporal_patch_size": 2,
    },
}  # fmt: skip
TINY: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "vision_config": {
        "depth": 5, "hidden_size": 48, "intermediate_size": 104, "num_heads": 4, "out_hidden_size": 96,
        "fullatt_block_indexes": [1, 3, 7],
    },
    "text_config": TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}},
}  # fmt: skip


def test_qwen2_5_vl_7b():
    spec = spec_from_config(QWEN2_5_VL_7B)
    assert of_spec(spec) == census(build(QWEN2_5_VL_7B))
    assert spec.parameters == pytest.approx(8.29e9, rel=0.005)  # what the model card says
    assert (spec.vision.window_px, spec.vision.full_attention_layers) == (112, (7, 15, 23, 31))
    assert spec.vision.gated_mlp
    assert spec.text.mrope_sections == (16, 24, 24)


def test_full_attention_layers_are_those_that_exist():
    assert spec_from_config(TINY).vision.full_attention_layers == (1, 3)


@pytest.mark.parametrize("tied", ["no", "outside", "inside"])
def test_counts_are_what_the_features_depend_on(tied: str):
    config = changed(TINY, "tie_word_embeddings", tied == "outside")
    config = changed(config, "text_config.tie_word_embeddings", tied == "inside")
    model = build(config, device="cpu")
    grid = torch.tensor([[1, 4, 6], [1, 8, 2]])  # two images, 56 x 84 and 112 x 28 px
    features = model.model.get_image_features(torch.randn(40, 3 * 2 * 14 * 14), grid).pooler_output
    spec = spec_from_config(config)
    assert of_spec(spec) == reached(model, features)
    assert spec.text.tied_embeddings == (tied != "no")
    assert [len(part) for part in features] == [6, 4]
    assert spec.projector.merge == 2


def test_the_nominal_view():
    spec = spec_from_config(QWEN2_5_VL_7B)
    assert (spec.vision.image_px, spec.vision.patches, spec.geometry.grid) == (448, 1024, (16, 16))
    assert (spec.vision.prefix_tokens, spec.vision.temporal_patch) == (0, 2)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("vision_config", ..., "vision_config is missing"),
        ("text_config", ..., "hidden_size is missing"),
        ("text_config.rope_parameters.mrope_section", [2, 2, 2], "text_config.rope_parameters.mrope_section"),
        ("text_config.rope_parameters.mrope_section", "2 3 3", "text_config.rope_parameters.mrope_section"),
        ("text_config.rope_parameters", ..., "text_config.rope_parameters.mrope_section"),
        ("text_config.num_attention_heads", 7, "text_config.num_"),
        ("vision_config.num_heads", 5, "vision_config.num_heads"),
        ("vision_config.depth", -1, "vision_config.depth"),
        ("vision_config.spatial_merge_size", 64, "vision_config."),
        ("vision_config.out_hidden_size", 95, "vision_config.out_hidden_size"),
        ("vision_config.window_size", 27, "vision_config.window_size"),
        ("vision_config.fullatt_block_indexes", 7, "vision_config.fullatt_block_indexes"),
        ("vision_config.fullatt_block_indexes", ["7"], "vision_config.fullatt_block_indexes"),
    ],
)
def test_bad_fields_are_named(path: str, value: object, named: str):
    with pytest.raises(BadInput) as caught:
        spec_from_config(changed(TINY, path, value))
    assert f"config.json: {named}" in caught.value.message

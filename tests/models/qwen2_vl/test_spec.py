"""Qwen2-VL specs against transformers' own models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.census import TEXT, build, census, changed, of_spec, reached
from vlm_edge.errors import BadInput
from vlm_edge.models.qwen2_vl.spec import spec_from_config

# Qwen2-VL-7B-Instruct as published: the decoder's fields stand beside the others.
QWEN2_VL_7B: dict[str, Any] = {
    "model_type": "qwen2_vl",
    "hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings": 32768, "max_window_layers": 28,
    "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4, "sliding_window": 32768,
    "use_sliding_window": False, "tie_word_embeddings": False, "vocab_size": 152064,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {
        "depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3, "hidden_size": 3584,
        "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
    },
}  # fmt: skip
TINY: dict[str, Any] = {
    "model_type": "qwen2_vl",
    "vision_config": {"depth": 5, "embed_dim": 48, "hidden_size": 96, "mlp_ratio": 3, "num_heads": 4},
    "text_config": TEXT
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}},
}


def test_qwen2_vl_7b():
    spec = spec_from_config(QWEN2_VL_7B)
    assert of_spec(spec) == census(build(QWEN2_VL_7B))
    assert spec.parameters == pytest.approx(8.29e9, rel=0.005)  # what the model card says
    assert spec.text.mrope_sections == (16, 24, 24)
    assert spec.text.sliding_layers == ()


def test_sliding_layers_start_at_max_window_layers():
    config = QWEN2_VL_7B | {"use_sliding_window": True, "max_window_layers": 20}
    text = spec_from_config(config).text
    kinds = build(config).config.text_config.layer_types
    assert text.sliding_layers == tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention")
    assert (text.sliding_window, len(text.sliding_layers)) == (32768, 8)


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
    spec = spec_from_config(QWEN2_VL_7B)
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
        ("vision_config.hidden_size", 95, "vision_config.hidden_size"),
    ],
)
def test_bad_fields_are_named(path: str, value: object, named: str):
    with pytest.raises(BadInput) as caught:
        spec_from_config(changed(TINY, path, value))
    assert f"config.json: {named}" in caught.value.message

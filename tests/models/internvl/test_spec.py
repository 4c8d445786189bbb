"""InternVL specs against transformers' own models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.census import TEXT, TOWER, build, census, changed, of_spec, reached
from vlm_edge.errors import BadInput
from vlm_edge.models.internvl.spec import spec_from_config

# InternVL3-8B: an InternViT-300M, which are transformers' defaults, and Qwen2.5-7B.
INTERNVL3_8B: dict[str, Any] = {
    "model_type": "internvl",
    "tie_word_embeddings": False,
    "vision_config": {"model_type": "internvl_vision", "attention_bias": True},
    "text_config": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 151674,
    },
}  # fmt: skip
TINY: dict[str, Any] = {
    "model_type": "internvl",
    "tie_word_embeddings": False,
    "vision_config": TOWER | {"model_type": "internvl_vision", "image_size": [56, 56], "patch_size": [14, 14]},
    "text_config": TEXT | {"model_type": "qwen3", "head_dim": 20},
}


def test_internvl3_8b():
    spec = spec_from_config(INTERNVL3_8B)
    assert of_spec(spec) == census(build(INTERNVL3_8B))
    assert round(spec.vision.parameters / 1e6) == 304  # "InternViT-300M"
    assert (spec.geometry.view_px, spec.geometry.tokens_per_view) == (448, 256)
    assert spec.projector.merge == 2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"vision_feature_layer": -2, "vision_config.use_mean_pooling": False},
        {"vision_feature_layer": 5, "vision_config.use_mean_pooling": False},
        {"vision_config.use_mean_pooling": False, "vision_config.use_mask_token": True, "downsample_ratio": 0.25},
        {
            "vision_config.use_qk_norm": True,
            "vision_config.norm_type": "rms_norm",
            "vision_config.attention_bias": True,
        },
        {"vision_config.use_absolute_position_embeddings": False},
    ],
    ids=str,
)
def test_counts_are_what_the_features_depend_on(changes: dict[str, Any]):
    config = TINY
    for path, value in changes.items():
        config = changed(config, path, value)
    model = build(config, device="cpu")
    features = model.model.get_image_features(torch.randn(2, 3, 56, 56)).pooler_output
    spec = spec_from_config(config)
    assert of_spec(spec) == reached(model, features)
    assert features.shape[1] == spec.geometry.tokens_per_view


def test_embeddings_are_tied_unless_the_file_says_no():
    config = changed(TINY, "tie_word_embeddings", ...)
    assert of_spec(spec_from_config(config)).lm_head == census(build(config)).lm_head == 0


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("text_config", ..., "text_config is missing"),
        ("vision_feature_layer", [-1, -2], "vision_feature_layer"),
        ("vision_feature_layer", 9, "vision_feature_layer"),
        ("vision_feature_select_strategy", "full", "vision_feature_select_strategy"),
        ("downsample_ratio", 0, "downsample_ratio"),
        ("downsample_ratio", 0.4, "downsample_ratio"),
        ("downsample_ratio", "half", "downsample_ratio"),
        ("downsample_ratio", 1 / 8, "downsample_ratio"),
        ("vision_config.norm_type", "batch_norm", "vision_config.norm_type"),
        ("vision_config.num_attention_heads", 5, "vision_config.num_attention_heads"),
        ("vision_config.image_size", [56, 28], "vision_config.image_size"),
        ("vision_config.image_size", [56, 56, 56], "vision_config.image_size"),
        ("vision_config.patch_size", "14", "vision_config.patch_size"),
    ],
)
def test_bad_fields_are_named(path: str, value: object, named: str):
    with pytest.raises(BadInput) as caught:
        spec_from_config(changed(TINY, path, value))
    assert f"config.json: {named}" in caught.value.message

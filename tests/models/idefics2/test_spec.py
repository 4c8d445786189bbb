"""Idefics2 specs against transformers' own models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.census import TEXT, TOWER, build, census, changed, of_spec, reached
from vlm_edge.errors import BadInput
from vlm_edge.models.idefics2.spec import spec_from_config

# idefics2-8b as published.
IDEFICS2_8B: dict[str, Any] = {
    "model_type": "idefics2",
    "vision_config": {
        "hidden_size": 1152, "image_size": 980, "intermediate_size": 4304, "num_attention_heads": 16,
        "num_hidden_layers": 27, "patch_size": 14,
    },
    "perceiver_config": {"resampler_n_latents": 64, "resampler_depth": 3},
    "text_config": {"model_type": "mistral", "max_position_embeddings": 32768, "vocab_size": 32003},
}  # fmt: skip
TINY: dict[str, Any] = {
    "model_type": "idefics2",
    "vision_config": TOWER,
    "perceiver_config": {
        "hidden_size": 96, "resampler_n_latents": 7, "resampler_depth": 2, "resampler_n_heads": 6,
        "resampler_head_dim": 10, "num_key_value_heads": 2,
    },
    "text_config": TEXT | {"model_type": "mistral", "head_dim": 20},
}  # fmt: skip


def test_idefics2_8b():
    spec = spec_from_config(IDEFICS2_8B)
    assert of_spec(spec) == census(build(IDEFICS2_8B))
    assert spec.geometry.tokens_per_view == 64
    assert spec.text.sliding_window == 4096  # Mistral's default
    assert spec.text.sliding_layers == tuple(range(32))


@pytest.mark.parametrize("tied", [False, True])
def test_counts_are_what_the_features_depend_on(tied: bool):
    config = changed(TINY, "tie_word_embeddings", tied)
    model = build(config, device="cpu")
    features = model.model.get_image_features(torch.randn(1, 2, 3, 56, 56)).pooler_output
    spec = spec_from_config(config)
    assert of_spec(spec) == reached(model, features)
    assert sum(map(len, features)) == 2 * spec.geometry.tokens_per_view == 14


def test_a_resampler_that_is_not_described_has_the_published_sizes():
    config = changed(TINY, "perceiver_config", ...)
    assert of_spec(spec_from_config(config)) == census(build(config))


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("vision_config", ..., "vision_config is missing"),
        ("perceiver_config", 3, "perceiver_config must be a JSON object"),
        ("perceiver_config.resampler_n_latents", 0, "perceiver_config.resampler_n_latents"),
        ("perceiver_config.resampler_depth", "deep", "perceiver_config.resampler_depth"),
        ("perceiver_config.num_key_value_heads", 4, "perceiver_config.num_key_value_heads"),
        ("vision_config.num_attention_heads", 7, "vision_config.num_attention_heads"),
        ("vision_config.intermediate_size", -1, "vision_config.intermediate_size"),
    ],
)
def test_bad_fields_are_named(path: str, value: object, named: str):
    with pytest.raises(BadInput) as caught:
        spec_from_config(changed(TINY, path, value))
    assert f"config.json: {named}" in caught.value.message

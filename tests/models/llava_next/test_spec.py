"""LLaVA-NeXT specs against transformers' own models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.census import TEXT, TOWER, build, census, changed, of_spec, reached
from vlm_edge.errors import BadInput
from vlm_edge.models.llava_next.spec import spec_from_config

# llava-v1.6-mistral-7b as published; Mistral's own defaults are 7B's.
MISTRAL_7B: dict[str, Any] = {
    "model_type": "llava_next",
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096,
        "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14,
    },
    "text_config": {
        "model_type": "mistral", "intermediate_size": 14336, "max_position_embeddings": 32768,
        "num_key_value_heads": 8, "sliding_window": None, "vocab_size": 32064,
    },
}  # fmt: skip
TINY: dict[str, Any] = {
    "model_type": "llava_next",
    "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]],
    "vision_config": TOWER | {"model_type": "clip_vision_model"},
    "text_config": TEXT | {"model_type": "mistral", "head_dim": 20},
}


def test_the_published_7b():
    spec = spec_from_config(MISTRAL_7B)
    assert of_spec(spec) == census(build(MISTRAL_7B), unused=(".post_layernorm.", ".layers.23."))
    assert (spec.geometry.view_px, spec.geometry.grid) == (336, (24, 24))
    assert (spec.text.sliding_window, spec.text.max_positions) == (0, 32768)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "vision_feature_layer": -1}], ids=str)
def test_counts_are_what_the_features_depend_on(changes: dict[str, Any]):
    model = build(TINY | changes, device="cpu")
    sizes = torch.tensor([[100, 50], [90, 110]])
    features = model.model.get_image_features(torch.randn(2, 5, 3, 56, 56), sizes).pooler_output
    assert of_spec(spec_from_config(TINY | changes)) == reached(model, features)


def test_a_tie_in_the_text_config_alone_does_not_count():
    config = changed(TINY, "text_config.tie_word_embeddings", True)
    assert of_spec(spec_from_config(config)).lm_head == census(build(config)).lm_head > 0


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("vision_config", ..., "vision_config is missing"),
        ("text_config.num_key_value_heads", 4, "text_config.num_key_value_heads"),
        ("text_config.sliding_window", "wide", "text_config.sliding_window"),
        ("vision_config.hidden_size", -48, "vision_config.hidden_size"),
        ("vision_feature_layer", 6, "vision_feature_layer"),
    ],
)
def test_bad_fields_are_named(path: str, value: object, named: str):
    with pytest.raises(BadInput) as caught:
        spec_from_config(changed(TINY, path, value))
    assert f"config.json: {named}" in caught.value.message

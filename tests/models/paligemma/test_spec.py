"""PaliGemma specs against transformers' own models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.census import TEXT, TOWER, build, census, changed, of_spec, reached
from vlm_edge.errors import BadInput
from vlm_edge.models.paligemma.spec import spec_from_config

# paligemma-3b-pt-224 and paligemma2-3b-pt-448 as published.
SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16,
    "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
PALIGEMMA_3B: dict[str, Any] = {
    "model_type": "paligemma",
    "projection_dim": 2048,
    "vision_config": SIGLIP,
    "text_config": {
        "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 8,
        "num_hidden_layers": 18, "num_key_value_heads": 1, "vocab_size": 257216,
    },
}  # fmt: skip
PALIGEMMA2_3B: dict[str, Any] = {
    "model_type": "paligemma",
    "projection_dim": 2304,
    "vision_config": SIGLIP | {"image_size": 448},
    "text_config": {"model_type": "gemma2", "vocab_size": 257216},
}
TINY: dict[str, Any] = {
    "model_type": "paligemma",
    "projection_dim": 96,
    "vision_config": TOWER | {"model_type": "siglip_vision_model"},
    "text_config": TEXT | {"model_type": "gemma", "head_dim": 20},
}


@pytest.mark.parametrize(
    ("config", "tokens", "parameters"), [(PALIGEMMA_3B, 256, 2.92e9), (PALIGEMMA2_3B, 1024, 3.03e9)], ids=["1", "2"]
)
def test_published_sizes(config: dict[str, Any], tokens: int, parameters: float):
    spec = spec_from_config(config)
    assert of_spec(spec) == census(build(config))
    assert spec.geometry.tokens_per_view == tokens
    assert spec.parameters == pytest.approx(parameters, rel=0.005)  # what the model cards say
    assert spec.text.bidirectional_prefix
    assert spec.text.tied_embeddings


@pytest.mark.parametrize(
    "changes",
    [
        {},  # with a pooling head that nothing reads
        {"tie_word_embeddings": False},
        {
            "text_config.model_type": "gemma2",
            "text_config.attention_bias": True,
            "vision_config.vision_use_head": False,
        },
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


def test_gemma_2_slides_in_every_second_layer():
    text = spec_from_config(PALIGEMMA2_3B).text
    kinds = build(PALIGEMMA2_3B).config.text_config.layer_types
    assert text.sliding_layers == tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention")
    assert text.sliding_window == 4096


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("text_config", ..., "text_config is missing"),
        ("projection_dim", 64, "projection_dim"),
        ("projection_dim", "wide", "projection_dim"),
        ("text_config.model_type", "llama", "text_config.model_type"),
        ("vision_config.model_type", "clip_vision_model", "vision_config.model_type"),
        ("vision_config.image_size", 13, "vision_config.patch_size"),
        ("tie_word_embeddings", "yes", "tie_word_embeddings"),
    ],
)
def test_bad_fields_are_named(path: str, value: object, named: str):
    with pytest.raises(BadInput) as caught:
        spec_from_config(changed(TINY, path, value))
    assert f"config.json: {named}" in caught.value.message

"""Idefics3 and SmolVLM specs against transformers' own models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.census import TEXT, TOWER, build, census, changed, of_spec, reached
from vlm_edge.errors import BadInput
from vlm_edge.models.idefics3.spec import spec_from_config

# Idefics3-8B-Llama3 and SmolVLM2-500M as published.
IDEFICS3_8B: dict[str, Any] = {
    "model_type": "idefics3",
    "scale_factor": 2,
    "vision_config": {
        "hidden_size": 1152, "image_size": 364, "intermediate_size": 4304, "num_attention_heads": 16,
        "num_hidden_layers": 27, "patch_size": 14,
    },
    "text_config": {
        "model_type": "llama", "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128259,
        "max_position_embeddings": 131072,
    },
}  # fmt: skip
SMOLVLM_500M: dict[str, Any] = {
    "model_type": "smolvlm",
    "scale_factor": 4,
    "vision_config": {
        "hidden_size": 768, "image_size": 512, "intermediate_size": 3072, "num_attention_heads": 12,
        "num_hidden_layers": 12, "patch_size": 16,
    },
    "text_config": {
        "model_type": "llama", "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32,
        "num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280,
        "max_position_embeddings": 8192,
    },
}  # fmt: skip
TINY: dict[str, Any] = {
    "model_type": "smolvlm",
    "vision_config": TOWER,
    "text_config": TEXT | {"model_type": "llama", "head_dim": 20},
}


@pytest.mark.parametrize(
    ("config", "tokens", "parameters"), [(IDEFICS3_8B, 169, 8.46e9), (SMOLVLM_500M, 64, 507e6)], ids=["8B", "500M"]
)
def test_published_sizes(config: dict[str, Any], tokens: int, parameters: float):
    spec = spec_from_config(config)
    assert of_spec(spec) == census(build(config))
    assert spec.geometry.tokens_per_view == tokens
    assert spec.parameters == pytest.approx(parameters, rel=0.005)  # what the model cards say


@pytest.mark.parametrize("kind", ["idefics3", "smolvlm"])
@pytest.mark.parametrize("tied", [False, True])
def test_counts_are_what_the_features_depend_on(kind: str, tied: bool):
    config = TINY | {"model_type": kind, "tie_word_embeddings": tied}
    model = build(config, device="cpu")
    features = model.model.get_image_features(torch.randn(1, 2, 3, 56, 56)).pooler_output
    spec = spec_from_config(config)
    assert of_spec(spec) == reached(model, features)
    assert sum(map(len, features)) == 2 * spec.geometry.tokens_per_view


@pytest.mark.parametrize("kind", ["idefics3", "smolvlm"])
def test_sizes_that_the_file_leaves_out(kind: str):
    config = {"model_type": kind, "vision_config": {}, "text_config": {}, "scale_factor": 1}
    assert of_spec(spec_from_config(config)) == census(build(config))


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("vision_config", ..., "vision_config is missing"),
        ("text_config", None, "text_config is missing"),
        ("scale_factor", 3, "scale_factor"),
        ("scale_factor", -2, "scale_factor"),
        ("vision_config.num_hidden_layers", 0, "vision_config.num_hidden_layers"),
        ("text_config.head_dim", 0, "text_config.head_dim"),
        ("text_config.model_type", "mamba", "text_config.model_type"),
    ],
)
def test_bad_fields_are_named(path: str, value: object, named: str):
    with pytest.raises(BadInput) as caught:
        spec_from_config(changed(TINY, path, value))
    assert f"config.json: {named}" in caught.value.message

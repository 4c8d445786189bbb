"""LLaVA specs against transformers' own models and published figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.census import TEXT, TOWER, build, census, changed, of_spec, reached
from vlm_edge.errors import BadInput
from vlm_edge.memory.formulas import kv_cache_bytes
from vlm_edge.models.llava.spec import spec_from_config

# As published: the text config leaves out what a Llama 7B has by default.
LLAVA_7B: dict[str, Any] = {
    "model_type": "llava",
    "vision_feature_layer": -2,
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096,
        "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768,
    },
    "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32064},
}  # fmt: skip
TINY: dict[str, Any] = {
    "model_type": "llava",
    "vision_config": TOWER | {"model_type": "clip_vision_model"},
    "text_config": TEXT | {"model_type": "llama", "head_dim": 20},
}
CLIP_UNUSED = (".post_layernorm.", ".layers.23.")


def test_llava_1_5_7b():
    spec = spec_from_config(LLAVA_7B)
    assert of_spec(spec) == census(build(LLAVA_7B), unused=CLIP_UNUSED)
    assert spec.geometry.tokens_per_view == 576
    assert spec.vision.layers == 23  # layer -2: the last block's output is never read
    assert (spec.text.kv_heads, spec.text.head_dim) == (32, 128)
    assert kv_cache_bytes(spec.text, tokens=1) == 524_288  # Vicuna-7B's published figure


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"text_config.tie_word_embeddings": True},
        {"tie_word_embeddings": True, "multimodal_projector_bias": False},
        {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
        {"vision_feature_layer": [1, -3, 2]},
        {"text_config.attention_bias": True, "text_config.mlp_bias": True},
        {"vision_config.model_type": "siglip_vision_model", "vision_feature_select_strategy": "full"},
        {"vision_config.model_type": "dinov2", "vision_config.mlp_ratio": 3, "vision_config.qkv_bias": False},
        {"vision_config.model_type": "dinov2", "vision_config.use_swiglu_ffn": True},
        {"vision_config.model_type": "dinov2_with_registers", "vision_config.num_register_tokens": 3},
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
    assert len(features[0]) == spec.geometry.tokens_per_view
    assert spec.text.tied_embeddings == (model.lm_head.weight is model.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("layer", "used"), [(-1, 24), (-2, 23), (24, 24), (5, 5), (-25, 0), ([-2, 7], 23), ([3, 7], 7)]
)
def test_feature_layer(layer: object, used: int):
    spec = spec_from_config(LLAVA_7B | {"vision_feature_layer": layer})
    assert spec.vision.layers == used
    assert spec.projector.input == 1024 * (len(layer) if isinstance(layer, list) else 1)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("vision_config", ..., "vision_config is missing"),
        ("text_config", ..., "text_config is missing"),
        ("text_config", [1], "text_config must be a JSON object"),
        ("text_config.num_hidden_layers", "many", "text_config.num_hidden_layers"),
        ("text_config.num_hidden_layers", None, "text_config.num_hidden_layers"),
        ("text_config.num_hidden_layers", 10**9, "text_config.num_hidden_layers"),
        ("text_config.vocab_size", True, "text_config.vocab_size"),
        ("text_config.hidden_size", -4096, "text_config.hidden_size"),
        ("text_config.hidden_size", 4096.0, "text_config.hidden_size"),
        ("text_config.num_key_value_heads", 5, "text_config.num_key_value_heads"),
        ("text_config.num_attention_heads", 33, "text_config.num_attention_heads"),
        ("text_config.model_type", "lama", "text_config.model_type"),
        ("text_config.attention_bias", "no", "text_config.attention_bias"),
        ("vision_config.num_attention_heads", 10, "vision_config.num_attention_heads"),
        ("vision_config.patch_size", 0, "vision_config.patch_size"),
        ("vision_config.patch_size", 400, "vision_config.patch_size"),
        ("vision_config.image_size", [336, 224], "vision_config.image_size"),
        ("vision_config.model_type", "pixtral", "vision_config.model_type"),
        ("vision_feature_layer", -26, "vision_feature_layer"),
        ("vision_feature_layer", 25, "vision_feature_layer"),
        ("vision_feature_layer", [-2, 99], "vision_feature_layer"),
        ("vision_feature_layer", [], "vision_feature_layer"),
        ("vision_feature_layer", "last", "vision_feature_layer"),
        ("vision_feature_layer", None, "vision_feature_layer"),
        ("vision_feature_layer", True, "vision_feature_layer"),
        ("vision_feature_select_strategy", "cls", "vision_feature_select_strategy"),
        ("multimodal_projector_bias", 1, "multimodal_projector_bias"),
        ("tie_word_embeddings", None, "tie_word_embeddings"),
    ],
)  # fmt: skip
def test_bad_fields_are_named(path: str, value: object, named: str):
    with pytest.raises(BadInput) as caught:
        spec_from_config(changed(LLAVA_7B, path, value))
    assert f"config.json: {named}" in caught.value.message


def test_a_wrong_text_model_brings_the_nearest_supported_one():
    with pytest.raises(BadInput) as caught:
        spec_from_config(changed(LLAVA_7B, "text_config.model_type", "mistral3"))
    assert "the nearest supported one is 'mistral'" in caught.value.remedy

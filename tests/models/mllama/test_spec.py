"""mllama specs against transformers' own models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.census import TEXT, build, census, changed, of_spec, reached
from vlm_edge.errors import BadInput
from vlm_edge.models.mllama.spec import spec_from_config

# Llama-3.2-11B-Vision: transformers' defaults but for the size of an image.
LLAMA_11B: dict[str, Any] = {"model_type": "mllama", "vision_config": {"image_size": 560}, "text_config": {}}
TINY: dict[str, Any] = {
    "model_type": "mllama",
    "vision_config": {
        "hidden_size": 48, "intermediate_size": 104, "num_hidden_layers": 5, "num_global_layers": 2,
        "attention_heads": 4, "image_size": 56, "patch_size": 14, "vision_output_dim": 144, "max_num_tiles": 2,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]], "intermediate_layers_indices": [1, 3],
    },
    "text_config": TEXT | {"cross_attention_layers": [1, 3]},
}  # fmt: skip


def test_llama_3_2_11b():
    spec = spec_from_config(LLAMA_11B)
    assert of_spec(spec) == census(build(LLAMA_11B))
    assert spec.parameters == pytest.approx(10.67e9, rel=0.005)  # what the model card says
    assert spec.text.cross_attention_layers == (3, 8, 13, 18, 23, 28, 33, 38)
    assert (spec.vision.layers, spec.geometry.tokens_per_view) == (40, 1601)


@pytest.mark.parametrize("tied", [False, True])
def test_counts_are_what_the_features_depend_on(tied: bool):
    config = changed(TINY, "text_config.tie_word_embeddings", tied)
    model = build(config, device="cpu")
    seen = model.model.vision_model(
        pixel_values=torch.randn(1, 1, 2, 3, 56, 56),
        aspect_ratio_ids=torch.tensor([[2]]),
        aspect_ratio_mask=torch.ones(1, 1, 2, dtype=torch.long),
    )
    spec = spec_from_config(config)
    assert of_spec(spec) == reached(model, model.model.multi_modal_projector(seen.last_hidden_state))
    assert seen.last_hidden_state.shape[-2] == spec.geometry.tokens_per_view
    assert not spec.text.tied_embeddings


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("vision_config", ..., "vision_config is missing"),
        ("vision_config.vision_output_dim", 96, "vision_config.vision_output_dim"),
        ("vision_config.intermediate_layers_indices", [9], "vision_config.intermediate_layers_indices"),
        ("vision_config.supported_aspect_ratios", 4, "vision_config.supported_aspect_ratios"),
        ("vision_config.attention_heads", 5, "vision_config.attention_heads"),
        ("vision_config.max_num_tiles", 0, "vision_config.max_num_tiles"),
        ("text_config.cross_attention_layers", [5], "text_config.cross_attention_layers"),
        ("text_config.num_attention_heads", 7, "text_config.num_"),
    ],
)
def test_bad_fields_are_named(path: str, value: object, named: str):
    with pytest.raises(BadInput) as caught:
        spec_from_config(changed(TINY, path, value))
    assert f"config.json: {named}" in caught.value.message

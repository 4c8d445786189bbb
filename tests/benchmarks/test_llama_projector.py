"""What is written for llama.cpp's libmtmd, as far as it needs no llama.cpp: settings, names, precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from benchmarks import shapes
from benchmarks.peers.llama_cpp.projector import as_bytes, layers_read, plain, settings, stored_dtype, tensor_names

CONFIG: dict[str, Any] = {
    "model_type": "llava", "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
    "projector_hidden_act": "gelu", "text_config": {"hidden_size": 2048},
    "vision_config": shapes.CLIP_L | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
}  # fmt: skip


def test_settings_are_those_of_the_checkpoint() -> None:
    made = settings(CONFIG, shapes.CLIP_PROCESSOR)
    assert made["clip.projector_type"] == "mlp"
    assert made["clip.use_gelu"] is False
    assert (made["clip.vision.image_size"], made["clip.vision.patch_size"]) == (336, 14)
    assert (made["clip.vision.embedding_length"], made["clip.vision.projection_dim"]) == (1024, 2048)
    assert made["clip.vision.image_mean"] == shapes.CLIP_PROCESSOR["image_mean"]
    # hidden state -2 of 24 layers is what 23 of them give
    assert (made["clip.vision.block_count"], made["clip.vision.feature_layer"]) == (23, [23])


@pytest.mark.parametrize(("layer", "read"), [(-1, 24), (-2, 23), (23, 23), (-25, 0)])
def test_a_hidden_state_is_counted_from_either_end(layer: int, read: int) -> None:
    assert layers_read(CONFIG | {"vision_feature_layer": layer}) == read


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"model_type": "llava_next"}, "model of llava_next"),
        ({"projector_hidden_act": "relu"}, "projector of relu"),
        ({"vision_feature_select_strategy": "full"}, "features of full"),
        ({"vision_config": CONFIG["vision_config"] | {"model_type": "siglip_vision_model"}}, "tower of siglip"),
        ({"vision_config": CONFIG["vision_config"] | {"hidden_act": "relu"}}, "activation of relu"),
    ],
)
def test_what_libmtmd_computes_in_another_way_is_refused(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(SystemExit, match=told):
        settings(CONFIG | changed, shapes.CLIP_PROCESSOR)


def test_every_tensor_that_features_depend_on_is_named_once() -> None:
    shape = shapes.SHAPES["llava-tiny"]
    config = transformers.LlavaConfig(**shape.config)
    with torch.device("meta"):
        model = transformers.LlavaForConditionalGeneration(config)
    there = {plain(name) for name, _ in model.named_parameters()}
    names = tensor_names(layers_read(config.to_dict()))
    assert len(set(names.values())) == len(names)
    assert names.keys() <= there
    unread = {name for name in there - names.keys() if not name.startswith(("language_model.", "lm_head."))}
    assert {name.split(".layers.")[-1].split(".")[0] for name in unread} == {"2", "vision_tower"}
    assert {name for name in unread if ".layers." not in name} == {
        "vision_tower.post_layernorm.weight", "vision_tower.post_layernorm.bias",
    }  # fmt: skip


def test_names_of_either_age_are_the_same_tensor() -> None:
    name = "vision_tower.embeddings.class_embedding"
    assert {plain(f"{front}{name}") for front in ("", "model.")} == {name}
    assert plain("model.vision_tower.vision_model.embeddings.class_embedding") == name


def test_only_matrices_that_multiply_are_rounded() -> None:
    assert stored_dtype("v.blk.0.attn_q.weight", 2) == np.float16
    assert stored_dtype("v.patch_embd.weight", 4) == np.float16
    assert stored_dtype("v.position_embd.weight", 2) == np.float32
    assert stored_dtype("v.blk.0.ln1.weight", 1) == np.float32


def test_pixels_of_8_bits_come_back_from_normalised_ones() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    mean, std = (np.array(shapes.CLIP_PROCESSOR[f"image_{name}"], np.float32) for name in ("mean", "std"))
    normalised = ((levels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(as_bytes(normalised, mean, std), levels)
    assert as_bytes(np.full((1, 3, 1, 1), 9.0), mean, std).tolist() == [[[[255] * 3]]]

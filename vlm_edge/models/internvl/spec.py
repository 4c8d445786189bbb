"""An InternVL config.json -> ModelSpec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_edge.core.geometry import TokenGeometry
from vlm_edge.core.specs import ModelSpec, ProjectorSpec
from vlm_edge.models.decoders import PLAIN_DECODERS, text_spec
from vlm_edge.models.fields import Fields
from vlm_edge.models.towers import TOWERS, feature_layers, layer_norm, linear, shuffled_grid, vision_spec

MODEL_TYPES = ("internvl",)
_DEFAULTS = {
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
    "downsample_ratio": 0.5,
    "tie_word_embeddings": True,
}
_TOWER = "internvl_vision"


def spec_from_config(config: Mapping[str, Any]) -> ModelSpec:
    """Sizes and parameters of an InternVLForConditionalGeneration.

    The norm behind the tower is counted when the projector reads it: with `vision_feature_layer` -1 and without
    `use_mean_pooling`.  Raises BadInput that names the field.
    """
    root = Fields(config, _DEFAULTS)
    seen, read = root.part("vision_config").with_defaults(TOWERS[_TOWER].defaults), root.part("text_config")
    layers = feature_layers(root, seen.layers("num_hidden_layers"))
    if len(layers) != 1:
        raise root.error("vision_feature_layer", "must be one layer: InternVL reads no list")
    # The class token must go, or the tokens make no square to shuffle.
    root.choice("vision_feature_select_strategy", ("default",), "default")
    vision = vision_spec(
        seen, _TOWER, feature_layers=layers, final_norm=layers == (-1,) and not seen.flag("use_mean_pooling")
    )
    tied = root.flag("tie_word_embeddings")
    text = text_spec(read, read.choice("model_type", PLAIN_DECODERS, "qwen2"), tied=tied)
    merge = merge_side(root)
    grid = shuffled_grid(root, vision.image_px // vision.patch_px, merge, name="downsample_ratio")
    inputs = vision.width * merge**2
    return ModelSpec(
        family="internvl",
        vision=vision,
        projector=ProjectorSpec(
            input=inputs,
            hidden=text.hidden,
            output=text.hidden,
            kind="pixel_shuffle",
            merge=merge,
            parameters=layer_norm(inputs) + linear(inputs, text.hidden) + linear(text.hidden, text.hidden),
        ),
        text=text,
        geometry=TokenGeometry(view_px=vision.image_px, grid=grid),
    )


def merge_side(root: Fields) -> int:
    """Side of the square of patches that becomes one token: the inverse of `downsample_ratio`."""
    ratio = root.with_defaults(_DEFAULTS).number("downsample_ratio")
    if not 0 < ratio <= 1 or (1 / ratio) % 1:
        raise root.error("downsample_ratio", f"must be one over a whole number, not {ratio!r}")
    return int(1 / ratio)

"""A LLaVA config.json -> ModelSpec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_edge.core.geometry import TokenGeometry
from vlm_edge.core.specs import ModelSpec, ProjectorSpec, TextSpec, VisionSpec
from vlm_edge.errors import BadInput


def spec_from_config(config: Mapping[str, Any]) -> ModelSpec:
    """Read sizes from a LlavaForConditionalGeneration config; raises BadInput when a field is missing or no number."""
    try:
        vision, text = config["vision_config"], config["text_config"]
        heads = int(text["num_attention_heads"])
        side = int(vision["image_size"]) // int(vision["patch_size"])
        return ModelSpec(
            family="llava",
            vision=VisionSpec(
                width=int(vision["hidden_size"]),
                layers=_used_layers(int(vision["num_hidden_layers"]), int(config.get("vision_feature_layer", -2))),
                heads=int(vision["num_attention_heads"]),
                mlp=int(vision["intermediate_size"]),
                image_px=int(vision["image_size"]),
                patch_px=int(vision["patch_size"]),
            ),
            projector=ProjectorSpec(int(vision["hidden_size"]), int(text["hidden_size"]), int(text["hidden_size"])),
            text=TextSpec(
                hidden=int(text["hidden_size"]),
                layers=int(text["num_hidden_layers"]),
                heads=heads,
                kv_heads=int(text.get("num_key_value_heads") or heads),
                head_dim=int(text.get("head_dim") or int(text["hidden_size"]) // heads),
                intermediate=int(text["intermediate_size"]),
                vocab=int(text["vocab_size"]),
                max_positions=int(text["max_position_embeddings"]),
                tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            ),
            geometry=TokenGeometry(view_px=int(vision["image_size"]), grid=(side, side)),
        )
    except (KeyError, TypeError, ValueError) as cause:
        raise BadInput(
            f"config.json is no LLaVA config: {cause!r}", remedy="name a folder with a LLaVA checkpoint"
        ) from cause


def _used_layers(layers: int, feature_layer: int) -> int:
    """Transformer layers that run: feature layer -1 is the last one's output, -2 the one before it."""
    return layers + 1 + feature_layer if feature_layer < 0 else feature_layer

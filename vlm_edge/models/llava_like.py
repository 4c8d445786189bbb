"""What LLaVA and LLaVA-NeXT share: a tower, an MLP that reads token by token, a decoder."""

from __future__ import annotations

from vlm_edge.core.geometry import TokenGeometry
from vlm_edge.core.specs import ModelSpec, ProjectorSpec, VisionSpec
from vlm_edge.models.decoders import PLAIN_DECODERS, text_spec
from vlm_edge.models.fields import Fields
from vlm_edge.models.towers import TOWERS, feature_layers, linear, vision_spec

DEFAULTS = {
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "multimodal_projector_bias": True,
    "tie_word_embeddings": False,
}
_TOWERS = ("clip_vision_model", "siglip_vision_model", "dinov2", "dinov2_with_registers")


def llava_like_spec(root: Fields, *, family: str, tied: bool, stored_rows: int = 0) -> ModelSpec:
    """A tower, one MLP for each token, a decoder.

    stored_rows: vectors of the decoder's width that are kept beside the projector, counted with it.
    """
    seen, read = root.part("vision_config"), root.part("text_config")
    kind = seen.choice("model_type", _TOWERS, "clip_vision_model")
    total = seen.with_defaults(TOWERS[kind].defaults).layers("num_hidden_layers")
    layers = feature_layers(root, total)
    vision = vision_spec(seen, kind, feature_layers=layers)
    text = text_spec(read, read.choice("model_type", PLAIN_DECODERS, "llama"), tied=tied)
    inputs, bias = vision.width * len(layers), root.flag("multimodal_projector_bias")
    return ModelSpec(
        family=family,
        vision=vision,
        projector=ProjectorSpec(
            input=inputs,
            hidden=text.hidden,
            output=text.hidden,
            parameters=linear(inputs, text.hidden, bias=bias)
            + linear(text.hidden, text.hidden, bias=bias)
            + stored_rows * text.hidden,
        ),
        text=text,
        geometry=TokenGeometry(view_px=vision.image_px, grid=_grid(root, vision)),
    )


def _grid(root: Fields, vision: VisionSpec) -> tuple[int, int]:
    """A square of patches; a single row where tokens are left over or missing because of how features are selected."""
    dropped = root.choice("vision_feature_select_strategy", ("default", "full"), "default") == "default"
    kept = vision.patches + vision.prefix_tokens - dropped
    side = vision.image_px // vision.patch_px
    return (side, side) if kept == side * side else (1, kept)

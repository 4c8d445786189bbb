"""A PaliGemma config.json -> ModelSpec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_edge.core.geometry import TokenGeometry
from vlm_edge.core.specs import ModelSpec, ProjectorSpec
from vlm_edge.models.decoders import text_spec
from vlm_edge.models.fields import Fields
from vlm_edge.models.towers import linear, vision_spec

MODEL_TYPES = ("paligemma",)


def spec_from_config(config: Mapping[str, Any]) -> ModelSpec:
    """Sizes and parameters of a PaliGemmaForConditionalGeneration, of the first generation (Gemma) or the second (Gemma 2).

    The norm behind the tower is counted, its pooling head is not.  Raises BadInput that names the field.
    """
    root = Fields(config, {"projection_dim": 2048, "tie_word_embeddings": True})
    seen, read = root.part("vision_config"), root.part("text_config")
    tied = root.flag("tie_word_embeddings")
    tower = seen.choice("model_type", ("siglip_vision_model",), "siglip_vision_model")
    vision = vision_spec(seen, tower, final_norm=True)
    text = text_spec(
        read, read.choice("model_type", ("gemma", "gemma2"), "gemma"), tied=tied, bidirectional_prefix=True
    )
    output = root.integer("projection_dim")
    if output != text.hidden:
        raise root.error("projection_dim", f"{output} differs from text_config.hidden_size {text.hidden}")
    side = vision.image_px // vision.patch_px
    return ModelSpec(
        family="paligemma",
        vision=vision,
        projector=ProjectorSpec(
            input=vision.width, hidden=0, output=output, kind="linear", parameters=linear(vision.width, output)
        ),
        text=text,
        geometry=TokenGeometry(view_px=vision.image_px, grid=(side, side)),
    )

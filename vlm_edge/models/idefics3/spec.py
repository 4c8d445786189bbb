"""An Idefics3 or SmolVLM config.json -> ModelSpec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_edge.core.geometry import TokenGeometry
from vlm_edge.core.specs import ModelSpec, ProjectorSpec
from vlm_edge.models.decoders import PLAIN_DECODERS, text_spec
from vlm_edge.models.fields import Fields
from vlm_edge.models.towers import linear, shuffled_grid, vision_spec

MODEL_TYPES = ("idefics3", "smolvlm")


def spec_from_config(config: Mapping[str, Any]) -> ModelSpec:
    """Sizes and parameters of an Idefics3- or SmolVLMForConditionalGeneration.

    The projector joins `scale_factor` x `scale_factor` patches and has one matrix; the norm behind the tower is counted.
    Raises BadInput that names the field.
    """
    root = Fields(config, {"scale_factor": 2, "tie_word_embeddings": False})
    read = root.part("text_config")
    tied = root.flag("tie_word_embeddings")
    vision = vision_spec(root.part("vision_config"), "idefics3_vision", final_norm=True)
    text = text_spec(read, read.choice("model_type", PLAIN_DECODERS, "llama"), tied=tied)
    merge = root.integer("scale_factor")
    grid = shuffled_grid(root, vision.image_px // vision.patch_px, merge, name="scale_factor")
    inputs = vision.width * merge**2
    return ModelSpec(
        family="idefics3",
        vision=vision,
        projector=ProjectorSpec(
            input=inputs,
            hidden=0,
            output=text.hidden,
            kind="pixel_shuffle",
            merge=merge,
            parameters=linear(inputs, text.hidden, bias=False),
        ),
        text=text,
        geometry=TokenGeometry(view_px=vision.image_px, grid=grid),
    )

"""An mllama (Llama 3.2 Vision) config.json -> ModelSpec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vlm_edge.core.geometry import TokenGeometry
from vlm_edge.core.specs import ModelSpec, ProjectorSpec
from vlm_edge.models.decoders import text_spec
from vlm_edge.models.fields import Fields
from vlm_edge.models.towers import TOWERS, linear, vision_spec

MODEL_TYPES = ("mllama",)
_TOWER = "mllama_vision_model"


def spec_from_config(config: Mapping[str, Any]) -> ModelSpec:
    """Sizes and parameters of an MllamaForConditionalGeneration.

    `vision.layers` are the local and the global ones; the projector reads the last output beside those of the layers in
    `intermediate_layers_indices`.  Visual tokens take no place in the prompt: `geometry` counts what the cross-attention
    layers read from one tile, its class token included; an image always has `vision.joint_views` tiles, some of them padding.
    lm_head is never tied.  Raises BadInput that names the field.
    """
    root = Fields(config)
    seen = root.part("vision_config").with_defaults(TOWERS[_TOWER].defaults)
    vision = replace(vision_spec(seen, _TOWER, final_norm=True), joint_views=seen.integer("max_num_tiles"))
    text = text_spec(root.part("text_config"), "mllama_text_model", tied=False)
    local = seen.layers("num_hidden_layers")
    read = seen.integers("intermediate_layers_indices", minimum=0, maximum=local)
    inputs = seen.integer("vision_output_dim")
    if inputs != vision.width * (1 + len(read)):
        raise seen.error(
            "vision_output_dim", f"{inputs} is not hidden_size {vision.width} for each of {1 + len(read)} outputs"
        )
    return ModelSpec(
        family="mllama",
        vision=vision,
        projector=ProjectorSpec(
            input=inputs, hidden=0, output=text.hidden, kind="linear", parameters=linear(inputs, text.hidden)
        ),
        text=text,
        geometry=TokenGeometry(view_px=vision.image_px, grid=(1, vision.patches + vision.prefix_tokens)),
    )

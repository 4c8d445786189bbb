"""An Idefics2 config.json -> ModelSpec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_edge.core.geometry import TokenGeometry
from vlm_edge.core.specs import ModelSpec, ProjectorSpec
from vlm_edge.models.decoders import PLAIN_DECODERS, text_spec
from vlm_edge.models.fields import Fields
from vlm_edge.models.towers import linear, vision_spec

MODEL_TYPES = ("idefics2",)
PERCEIVER = {
    "resampler_n_latents": 64,
    "resampler_depth": 3,
    "resampler_n_heads": 16,
    "resampler_head_dim": 96,
    "num_key_value_heads": 4,
}


def spec_from_config(config: Mapping[str, Any]) -> ModelSpec:
    """Sizes and parameters of an Idefics2ForConditionalGeneration.

    The projector is a gated MLP for each token and a resampler that draws a fixed number of tokens from all of them;
    its width is the decoder's, whatever `perceiver_config.hidden_size` says.  The norm behind the tower is counted.
    A view is a square of the largest size that the position table covers.  Raises BadInput that names the field.
    """
    root = Fields(config, {"tie_word_embeddings": False})
    read = root.part("text_config")
    tied = root.flag("tie_word_embeddings")
    vision = vision_spec(root.part("vision_config"), "idefics2_vision", final_norm=True)
    text = text_spec(read, read.choice("model_type", PLAIN_DECODERS, "mistral"), tied=tied)
    resampler = root.part("perceiver_config", optional=True).with_defaults(PERCEIVER)
    latents = resampler.integer("resampler_n_latents")
    inner = text.intermediate
    mlp = 2 * linear(vision.width, inner, bias=False) + linear(inner, text.hidden, bias=False)
    return ModelSpec(
        family="idefics2",
        vision=vision,
        projector=ProjectorSpec(
            input=vision.width,
            hidden=inner,
            output=text.hidden,
            kind="perceiver",
            parameters=mlp + _resampler(resampler, latents, text.hidden),
        ),
        text=text,
        geometry=TokenGeometry(view_px=vision.image_px, grid=(1, latents)),
    )


def _resampler(config: Fields, latents: int, width: int) -> int:
    """Latents, layers of grouped-query cross-attention and a gated MLP of four times the width, and a last norm."""
    heads, kv_heads = config.integer("resampler_n_heads"), config.integer("num_key_value_heads")
    if heads % kv_heads:
        raise config.error("num_key_value_heads", f"{kv_heads} does not divide resampler_n_heads {heads}")
    attention = 2 * width * (heads + kv_heads) * config.integer("resampler_head_dim")
    layer = attention + 3 * width * 4 * width + 3 * width
    return latents * width + config.layers("resampler_depth") * layer + width

"""A Qwen2.5-VL config.json -> ModelSpec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_edge.core.specs import ModelSpec
from vlm_edge.models.qwen_vl import qwen_vl_spec
from vlm_edge.models.towers import rms_norm

MODEL_TYPES = ("qwen2_5_vl",)
_TOWER = "qwen2_5_vl_vision"


def spec_from_config(config: Mapping[str, Any]) -> ModelSpec:
    """Sizes and parameters of a Qwen2_5_VLForConditionalGeneration.

    Most layers of the tower attend within windows (`vision.window_px`); `vision.full_attention_layers` see everything.
    As with Qwen2-VL, `geometry` and `vision.image_px` are those of a nominal view of 448 x 448 px.
    Raises BadInput that names the field.
    """
    return qwen_vl_spec(config, family="qwen2_5_vl", tower=_TOWER, output="out_hidden_size", norm=rms_norm)

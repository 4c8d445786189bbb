"""A Qwen2-VL config.json -> ModelSpec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_edge.core.specs import ModelSpec
from vlm_edge.models.qwen_vl import qwen_vl_spec
from vlm_edge.models.towers import layer_norm

MODEL_TYPES = ("qwen2_vl",)
_TOWER = "qwen2_vl_vision"


def spec_from_config(config: Mapping[str, Any]) -> ModelSpec:
    """Sizes and parameters of a Qwen2VLForConditionalGeneration.

    The tower takes views of any size and its config names none: `geometry` and `vision.image_px` are those of a view of
    448 x 448 px (towers.NOMINAL_PX), which stands for one.  Raises BadInput that names the field.
    """
    return qwen_vl_spec(config, family="qwen2_vl", tower=_TOWER, output="hidden_size", norm=layer_norm)

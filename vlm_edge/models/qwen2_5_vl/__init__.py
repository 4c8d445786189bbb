"""Qwen2.5-VL: Qwen2-VL with a tower that attends within windows in most layers."""

from __future__ import annotations

from vlm_edge.core.contracts import VlmFamily
from vlm_edge.core.dialects import JSON_PIXELS
from vlm_edge.models.qwen2_5_vl.prompt import Qwen25VlPrompt
from vlm_edge.models.qwen2_5_vl.spec import MODEL_TYPES, spec_from_config

FAMILY = VlmFamily(
    name="qwen2_5_vl",
    spec=spec_from_config,
    prompt=Qwen25VlPrompt,
    merge_sites=frozenset({"after_projector"}),
    model_types=MODEL_TYPES,
    dialects=(JSON_PIXELS,),
)

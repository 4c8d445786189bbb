"""Qwen2.5-VL: Qwen2-VL with a tower that attends within windows in most layers."""

from __future__ import annotations

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.contracts import PromptBuilder, VlmFamily
from vlm_edge.core.dialects import JSON_PIXELS
from vlm_edge.models.qwen2_5_vl.spec import MODEL_TYPES, spec_from_config


def _prompt(bundle: Bundle) -> PromptBuilder:
    from vlm_edge.models.qwen2_5_vl.prompt import Qwen25VlPrompt  # which needs NumPy, and a plan does not

    return Qwen25VlPrompt(bundle)


FAMILY = VlmFamily(
    name="qwen2_5_vl",
    spec=spec_from_config,
    prompt=_prompt,
    merge_sites=frozenset({"after_projector"}),
    model_types=MODEL_TYPES,
    chosen_tiles=True,
    dialects=(JSON_PIXELS,),
)

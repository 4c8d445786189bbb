"""Qwen2-VL: a ViT for any image size, a merger of 2 x 2 patches, Qwen2 with M-RoPE."""

from __future__ import annotations

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.contracts import PromptBuilder, VlmFamily
from vlm_edge.core.dialects import PAIRS, TAGS
from vlm_edge.models.qwen2_vl.spec import MODEL_TYPES, spec_from_config


def _prompt(bundle: Bundle) -> PromptBuilder:
    from vlm_edge.models.qwen2_vl.prompt import Qwen2VlPrompt  # which needs NumPy, and a plan does not

    return Qwen2VlPrompt(bundle)


FAMILY = VlmFamily(
    name="qwen2_vl",
    spec=spec_from_config,
    prompt=_prompt,
    merge_sites=frozenset({"after_projector"}),
    model_types=MODEL_TYPES,
    chosen_tiles=True,
    dialects=(TAGS, PAIRS),
)

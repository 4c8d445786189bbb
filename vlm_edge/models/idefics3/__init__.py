"""Idefics3 and SmolVLM: a SigLIP tower, pixel shuffle and one matrix, a Llama decoder."""

from __future__ import annotations

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.contracts import PromptBuilder, VlmFamily
from vlm_edge.models.idefics3.spec import MODEL_TYPES, spec_from_config


def _prompt(bundle: Bundle) -> PromptBuilder:
    from vlm_edge.models.idefics3.prompt import Idefics3Prompt  # which needs NumPy, and a plan does not

    return Idefics3Prompt(bundle)


FAMILY = VlmFamily(
    name="idefics3",
    spec=spec_from_config,
    prompt=_prompt,
    merge_sites=frozenset({"after_projector"}),
    model_types=MODEL_TYPES,
    chosen_tiles=True,
    reducible=True,
)

"""InternVL: a ViT, pixel shuffle and an MLP, a decoder."""

from __future__ import annotations

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.contracts import PromptBuilder, VlmFamily
from vlm_edge.core.dialects import BRACKETS, TAGS
from vlm_edge.models.internvl.spec import MODEL_TYPES, spec_from_config


def _prompt(bundle: Bundle) -> PromptBuilder:
    from vlm_edge.models.internvl.prompt import InternvlPrompt  # which needs NumPy, and a plan does not

    return InternvlPrompt(bundle)


FAMILY = VlmFamily(
    name="internvl",
    spec=spec_from_config,
    prompt=_prompt,
    merge_sites=frozenset({"after_projector"}),
    model_types=MODEL_TYPES,
    chosen_tiles=True,
    reducible=True,
    dialects=(TAGS, BRACKETS),
)

"""PaliGemma: a SigLIP tower, one linear layer for each token, Gemma with a bidirectional prefix."""

from __future__ import annotations

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.contracts import PromptBuilder, VlmFamily
from vlm_edge.core.dialects import LOCATIONS
from vlm_edge.models.paligemma.spec import MODEL_TYPES, spec_from_config


def _prompt(bundle: Bundle) -> PromptBuilder:
    from vlm_edge.models.paligemma.prompt import PaligemmaPrompt  # which needs NumPy, and a plan does not

    return PaligemmaPrompt(bundle)


FAMILY = VlmFamily(
    name="paligemma",
    spec=spec_from_config,
    prompt=_prompt,
    merge_sites=frozenset({"before_projector", "after_projector"}),
    model_types=MODEL_TYPES,
    reducible=True,
    dialects=(LOCATIONS,),
)

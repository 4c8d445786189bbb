"""Idefics2: a SigLIP tower at any aspect ratio, a perceiver resampler to a fixed number of tokens, Mistral."""

from __future__ import annotations

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.contracts import PromptBuilder, VlmFamily
from vlm_edge.models.idefics2.spec import MODEL_TYPES, spec_from_config


def _prompt(bundle: Bundle) -> PromptBuilder:
    from vlm_edge.models.idefics2.prompt import Idefics2Prompt  # which needs NumPy, and a plan does not

    return Idefics2Prompt(bundle)


FAMILY = VlmFamily(
    name="idefics2",
    spec=spec_from_config,
    prompt=_prompt,
    # The resampler reads its input as a set, so a reduction before it mixes nothing up.
    merge_sites=frozenset({"before_projector", "after_projector"}),
    model_types=MODEL_TYPES,
)

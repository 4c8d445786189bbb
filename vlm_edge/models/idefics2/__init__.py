"""Idefics2: a SigLIP tower at any aspect ratio, a perceiver resampler to a fixed number of tokens, Mistral."""

from __future__ import annotations

from vlm_edge.core.contracts import VlmFamily
from vlm_edge.models.idefics2.prompt import Idefics2Prompt
from vlm_edge.models.idefics2.spec import MODEL_TYPES, spec_from_config

FAMILY = VlmFamily(
    name="idefics2",
    spec=spec_from_config,
    prompt=Idefics2Prompt,
    # The resampler reads its input as a set, so a reduction before it mixes nothing up.
    merge_sites=frozenset({"before_projector", "after_projector"}),
    model_types=MODEL_TYPES,
)

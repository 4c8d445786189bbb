"""PaliGemma: a SigLIP tower, one linear layer for each token, Gemma with a bidirectional prefix."""

from __future__ import annotations

from vlm_edge.core.contracts import VlmFamily
from vlm_edge.core.dialects import LOCATIONS
from vlm_edge.models.paligemma.prompt import PaligemmaPrompt
from vlm_edge.models.paligemma.spec import MODEL_TYPES, spec_from_config

FAMILY = VlmFamily(
    name="paligemma",
    spec=spec_from_config,
    prompt=PaligemmaPrompt,
    merge_sites=frozenset({"before_projector", "after_projector"}),
    model_types=MODEL_TYPES,
    reducible=True,
    dialects=(LOCATIONS,),
)

"""InternVL: a ViT, pixel shuffle and an MLP, a decoder."""

from __future__ import annotations

from vlm_edge.core.contracts import VlmFamily
from vlm_edge.core.dialects import BRACKETS, TAGS
from vlm_edge.models.internvl.prompt import InternvlPrompt
from vlm_edge.models.internvl.spec import MODEL_TYPES, spec_from_config

FAMILY = VlmFamily(
    name="internvl",
    spec=spec_from_config,
    prompt=InternvlPrompt,
    merge_sites=frozenset({"after_projector"}),
    model_types=MODEL_TYPES,
    reducible=True,
    dialects=(TAGS, BRACKETS),
)

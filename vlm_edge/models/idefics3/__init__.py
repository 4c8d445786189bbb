"""Idefics3 and SmolVLM: a SigLIP tower, pixel shuffle and one matrix, a Llama decoder."""

from __future__ import annotations

from vlm_edge.core.contracts import VlmFamily
from vlm_edge.models.idefics3.prompt import Idefics3Prompt
from vlm_edge.models.idefics3.spec import MODEL_TYPES, spec_from_config

FAMILY = VlmFamily(
    name="idefics3",
    spec=spec_from_config,
    prompt=Idefics3Prompt,
    merge_sites=frozenset({"after_projector"}),
    model_types=MODEL_TYPES,
    reducible=True,
)

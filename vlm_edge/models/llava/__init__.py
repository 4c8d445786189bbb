"""LLaVA: a ViT, a two-layer MLP projector applied token by token, and a Llama-like decoder."""

from __future__ import annotations

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.contracts import PromptBuilder, VlmFamily
from vlm_edge.core.dialects import FLOATS, TAGS
from vlm_edge.models.llava.spec import MODEL_TYPES, spec_from_config


def _prompt(bundle: Bundle) -> PromptBuilder:
    from vlm_edge.models.llava.prompt import LlavaPrompt  # which needs NumPy, and a plan does not

    return LlavaPrompt(bundle)


FAMILY = VlmFamily(
    name="llava",
    spec=spec_from_config,
    prompt=_prompt,
    merge_sites=frozenset({"before_projector", "after_projector"}),
    model_types=MODEL_TYPES,
    free_tiles=True,
    reducible=True,
    dialects=(TAGS, FLOATS),
)

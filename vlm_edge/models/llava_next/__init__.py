"""LLaVA-NeXT: LLaVA with several views of one image, laid out as a grid with `image_newline` at the ends of its rows."""

from __future__ import annotations

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.contracts import PromptBuilder, VlmFamily
from vlm_edge.core.dialects import FLOATS, TAGS
from vlm_edge.models.llava_next.spec import MODEL_TYPES, spec_from_config


def _prompt(bundle: Bundle) -> PromptBuilder:
    from vlm_edge.models.llava_next.prompt import LlavaNextPrompt  # which needs NumPy, and a plan does not

    return LlavaNextPrompt(bundle)


FAMILY = VlmFamily(
    name="llava_next",
    spec=spec_from_config,
    prompt=_prompt,
    merge_sites=frozenset({"after_projector"}),
    model_types=MODEL_TYPES,
    chosen_tiles=True,
    reducible=True,
    dialects=(FLOATS, TAGS),
)

"""LLaVA-NeXT: LLaVA with several views of one image, laid out as a grid with `image_newline` at the ends of its rows."""

from __future__ import annotations

from vlm_edge.core.contracts import VlmFamily
from vlm_edge.core.dialects import FLOATS, TAGS
from vlm_edge.models.llava_next.prompt import LlavaNextPrompt
from vlm_edge.models.llava_next.spec import MODEL_TYPES, spec_from_config

FAMILY = VlmFamily(
    name="llava_next",
    spec=spec_from_config,
    prompt=LlavaNextPrompt,
    merge_sites=frozenset({"after_projector"}),
    model_types=MODEL_TYPES,
    dialects=(FLOATS, TAGS),
)

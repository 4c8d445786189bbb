"""What preprocessor_config.json says where config.json comes alone: tiles of the encoder's own size, four along the edge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_edge.core.specs import ModelSpec

TILES_ALONG_EDGE = 4
"""As in Idefics3-8B and SmolVLM's larger models."""


def preprocessor(spec: ModelSpec) -> Mapping[str, Any]:
    """The sizes that follow from the encoder; everything else is the family's default."""
    side = spec.vision.image_px
    return {"max_image_size": {"longest_edge": side}, "size": {"longest_edge": TILES_ALONG_EDGE * side}}

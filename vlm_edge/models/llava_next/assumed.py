"""What preprocessor_config.json says where config.json comes alone: views of the encoder's own size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_edge.core.specs import ModelSpec


def preprocessor(spec: ModelSpec) -> Mapping[str, Any]:
    """The sizes that follow from the encoder; everything else is the family's default."""
    square = {"height": spec.vision.image_px, "width": spec.vision.image_px}
    return {"size": square, "crop_size": square}

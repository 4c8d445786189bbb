"""What preprocessor_config.json says where config.json comes alone: the limits of the published checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_edge.core.specs import ModelSpec

PIXELS = {"min_pixels": 56 * 56, "max_pixels": 16384 * 28 * 28}
"""The processor's own default allows a thirteenth of that: a plan by it would be too small for the published checkpoints."""


def preprocessor(spec: ModelSpec) -> Mapping[str, Any]:
    """How patches are cut follows from the encoder's config."""
    cell = spec.vision.patch_px, spec.projector.merge, spec.vision.temporal_patch
    return {**PIXELS, **dict(zip(("patch_size", "merge_size", "temporal_patch_size"), cell, strict=True))}

"""PaliGemma: how images are cut and scaled, by a checkpoint's files alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_edge.core.geometry import TokenGeometry
from vlm_edge.models.fields import Fields
from vlm_edge.models.preprocessor import (
    BICUBIC,
    HALF,
    ViewSettings,
    normalisation,
    preprocessor_fields,
    resample_field,
    same_view,
    square_size,
)
from vlm_edge.models.towers import patch_grid

ImageSettings = ViewSettings[TokenGeometry]


def settings_from(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> ImageSettings:
    """From config.json and preprocessor_config.json; raises BadInput with the field's name."""
    fields = preprocessor_fields(preprocessor, types=("SiglipImageProcessor",))
    vision = Fields(config).part("vision_config", optional=True)
    view_px = square_size(fields, "size", 224)
    same_view(fields, "size", view_px, vision, 224)
    side = patch_grid(vision, view_px, patch_px=vision.count("patch_size"))
    if fields.count("image_seq_length", side * side) != side * side:
        raise fields.error("image_seq_length", f"differs from the {side * side} tokens of a view")
    return ViewSettings(
        geometry=TokenGeometry(view_px=view_px, grid=(side, side)),
        resample=resample_field(fields, BICUBIC),
        pixels=normalisation(fields, HALF, HALF),
    )

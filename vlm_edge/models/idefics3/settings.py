"""Idefics3 and SmolVLM: how images are cut and scaled, by a checkpoint's files alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_edge.core.geometry import SplitGeometry
from vlm_edge.models.fields import Fields
from vlm_edge.models.preprocessor import (
    HALF,
    LANCZOS,
    ViewSettings,
    normalisation,
    preprocessor_fields,
    resample_field,
    same_view,
    size_edges,
)
from vlm_edge.models.towers import patch_grid, shuffled_grid

ImageSettings = ViewSettings[SplitGeometry]
_TYPES = ("Idefics3ImageProcessor", "SmolVLMImageProcessor")


def settings_from(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> ImageSettings:
    """From config.json and preprocessor_config.json; raises BadInput with the field's name."""
    fields = preprocessor_fields(preprocessor, types=_TYPES, steps=("do_image_splitting", "do_pad"))
    whole = Fields(config)
    vision = whole.part("vision_config", optional=True)
    view_px = _longest(fields, "max_image_size", 364)
    same_view(fields, "max_image_size", view_px, vision, 224)
    side = patch_grid(vision, view_px, patch_px=vision.count("patch_size"))
    return ViewSettings(
        geometry=SplitGeometry(
            view_px=view_px,
            grid=shuffled_grid(whole, side, whole.count("scale_factor", 2), name="scale_factor"),
            longest_px=_longest(fields, "size", 4 * 364),
            split=fields.flag("do_image_splitting", True),
        ),
        resample=resample_field(fields, LANCZOS),
        pixels=normalisation(fields, HALF, HALF),
    )


def _longest(fields: Fields, key: str, default: int) -> int:
    sizes = size_edges(fields, key, {"longest_edge": default}, number_means=("longest_edge",))
    if "longest_edge" not in sizes:
        raise fields.error(key, f"has no longest_edge: {sizes!r}")
    return fields.with_value(key, sizes["longest_edge"]).count(key)

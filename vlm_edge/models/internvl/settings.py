"""InternVL: how images are cut and scaled, by a checkpoint's files alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_edge.core.geometry import TileGeometry
from vlm_edge.models.fields import Fields
from vlm_edge.models.internvl.spec import merge_side
from vlm_edge.models.preprocessor import (
    BICUBIC,
    CLIP_MEAN,
    CLIP_STD,
    ViewSettings,
    normalisation,
    preprocessor_fields,
    resample_field,
    same_view,
    square_size,
)
from vlm_edge.models.towers import patch_grid, shuffled_grid

ImageSettings = ViewSettings[TileGeometry]
MAX_TILES = 1024


def settings_from(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> ImageSettings:
    """From config.json and preprocessor_config.json; raises BadInput with the field's name.

    The file's crop_to_patches is not read: transformers' processor of this family always cuts tiles.
    """
    fields = preprocessor_fields(preprocessor, types=("GotOcr2ImageProcessor",))
    whole = Fields(config)
    vision = whole.part("vision_config", optional=True)
    view_px = square_size(fields, "size", 384)
    same_view(fields, "size", view_px, vision, 448)
    side = patch_grid(vision, view_px, patch_px=vision.side("patch_size", 14))
    grid = shuffled_grid(whole, side, merge_side(whole), name="downsample_ratio")
    if whole.count("image_seq_length", grid[0] * grid[1]) != grid[0] * grid[1]:
        raise whole.error("image_seq_length", f"differs from the {grid[0] * grid[1]} tokens of a view")
    least = fields.count("min_patches", 1, maximum=MAX_TILES)
    most = fields.count("max_patches", 12, maximum=MAX_TILES)
    if most < least:
        raise fields.error("max_patches", f"of {most} is less than min_patches, {least}")
    return ViewSettings(
        geometry=TileGeometry(view_px=view_px, grid=grid, min_tiles=least, max_tiles=most),
        resample=resample_field(fields, BICUBIC),
        pixels=normalisation(fields, CLIP_MEAN, CLIP_STD),
    )

"""LLaVA-NeXT: how images are cut and scaled, by a checkpoint's files alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_edge.core.geometry import AnyResGeometry, Size
from vlm_edge.models.fields import Fields
from vlm_edge.models.preprocessor import (
    BICUBIC,
    CLIP_MEAN,
    CLIP_STD,
    ViewSettings,
    normalisation,
    preprocessor_fields,
    resample_field,
    same_view,
    size_edges,
    size_pairs,
    square_size,
)
from vlm_edge.models.towers import patch_grid

ImageSettings = ViewSettings[AnyResGeometry]
# [height, width]; both transformers' config and its processor start from these.
_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def settings_from(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> ImageSettings:
    """From config.json and preprocessor_config.json; raises BadInput with the field's name."""
    # do_pad fills a batch up with empty views, which does not concern one image.
    fields = preprocessor_fields(preprocessor, types=("LlavaNextImageProcessor",), steps=("do_center_crop", "do_pad"))
    whole = Fields(config)
    vision = whole.part("vision_config", optional=True)
    sizes = size_edges(fields, "size", {"shortest_edge": 224}, number_means=("shortest_edge",))
    view_px = square_size(fields.with_value("size", sizes), "size", 224)
    if fields.flag("do_center_crop", True) and square_size(fields, "crop_size", 224) != view_px:
        raise fields.error("crop_size", f"differs from size, which is {view_px} px: tiles would not fit the encoder")
    same_view(fields, "size", view_px, vision, 224)
    side = patch_grid(vision, view_px, patch_px=vision.count("patch_size"))
    return ViewSettings(
        geometry=AnyResGeometry(view_px=view_px, grid=(side, side), pinpoints=_pinpoints(whole, fields, view_px)),
        resample=resample_field(fields, BICUBIC),
        pixels=normalisation(fields, CLIP_MEAN, CLIP_STD),
    )


def _pinpoints(config: Fields, fields: Fields, view_px: int) -> tuple[Size, ...]:
    """The model cuts its features by config.json's list and the processor its tiles by its own: they must agree."""
    key = "image_grid_pinpoints"
    of_processor = size_pairs(fields, key, fields.get(key, config.get(key, _PINPOINTS)))
    if size_pairs(config, key, config.get(key, _PINPOINTS)) != of_processor:
        raise config.error(key, "differs from the list in preprocessor_config.json")
    uneven = [size for size in of_processor if size[0] % view_px or size[1] % view_px]
    if uneven:
        width, height = uneven[0]
        raise fields.error(key, f"has [{height}, {width}], which is no multiple of a view of {view_px} px")
    return of_processor

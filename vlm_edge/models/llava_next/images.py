"""LLaVA-NeXT: the whole image in one view, then tiles of it at the pinpoint that suits it best (AnyRes)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_edge.core.geometry import AnyResGeometry, Size
from vlm_edge.core.image_inputs import ImageInputs
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
from vlm_edge.vision.resize import Rgb, cut, padded, require_rgb, resized, source_box, tile_boxes

ImageSettings = ViewSettings[AnyResGeometry]
# [height, width]; both transformers' config and its processor start from these.
_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_BLACK = (0, 0, 0)


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


def prepare(image: Rgb, settings: ImageSettings) -> ImageInputs:
    """uint8 [H, W, 3] -> pixel_values float32 [1 + N, 3, S, S], the whole image first; raises BadImage otherwise.

    The image lies centred on a black canvas of the pinpoint's size; `layout.token_grid` says which part of the tiles'
    tokens remains, also centred, and a newline token ends each of its rows.
    """
    image_px = require_rgb(image)
    layout = settings.geometry.layout(image_px)
    side = settings.geometry.view_px
    if layout.views == 1:
        view = resized(image, (side, side), settings.resample)
        return ImageInputs({"pixel_values": settings.pixels.stack([view])}, ((0, 0, *image_px),), layout)
    x0, y0, x1, y1 = layout.content
    fitted = resized(image, (x1 - x0, y1 - y0), settings.resample)
    canvas = padded(fitted, (0, 0, *layout.canvas_px), (x0, y0), _BLACK)
    tiles = tile_boxes(layout.canvas_px, side)
    views = [resized(image, (side, side), settings.resample), *(cut(canvas, tile) for tile in tiles)]
    boxes = ((0, 0, *image_px), *(source_box(tile, layout.content, image_px) for tile in tiles))
    return ImageInputs({"pixel_values": settings.pixels.stack(views)}, boxes, layout)

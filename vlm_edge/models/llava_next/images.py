"""LLaVA-NeXT: the whole image in one view, then tiles of it at the pinpoint that suits it best (AnyRes)."""

from __future__ import annotations

from vlm_edge.core.image_inputs import ImageInputs
from vlm_edge.models.llava_next.settings import ImageSettings, settings_from
from vlm_edge.vision.resize import Rgb, cut, padded, require_rgb, resized, source_box, tile_boxes

__all__ = ["ImageSettings", "prepare", "settings_from"]

_BLACK = (0, 0, 0)


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

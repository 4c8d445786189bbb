"""InternVL: an image stretched to a grid of square tiles of nearest proportions, and a thumbnail of it."""

from __future__ import annotations

from vlm_edge.core.image_inputs import ImageInputs
from vlm_edge.models.internvl.settings import ImageSettings, settings_from
from vlm_edge.vision.resize import Rgb, cut, require_rgb, resized, source_box, tile_boxes

__all__ = ["ImageSettings", "prepare", "settings_from"]


def prepare(image: Rgb, settings: ImageSettings) -> ImageInputs:
    """uint8 [H, W, 3] -> pixel_values float32 [V, 3, S, S], tiles row by row, then the thumbnail; raises BadImage."""
    image_px = require_rgb(image)
    layout = settings.geometry.layout(image_px)
    side = settings.geometry.view_px
    canvas = resized(image, layout.canvas_px, settings.resample)
    tiles = tile_boxes(layout.canvas_px, side)
    views = [cut(canvas, tile) for tile in tiles]
    boxes = [source_box(tile, layout.content, image_px) for tile in tiles]
    if layout.views > len(tiles):
        views.append(resized(image, (side, side), settings.resample))
        boxes.append((0, 0, *image_px))
    return ImageInputs({"pixel_values": settings.pixels.stack(views)}, tuple(boxes), layout)

"""InternVL: an image stretched to a grid of square tiles of nearest proportions, and a thumbnail of it."""

from __future__ import annotations

from vlm_edge.core.geometry import ImageLayout
from vlm_edge.core.image_inputs import ImageInputs
from vlm_edge.models.internvl.settings import ImageSettings, settings_from
from vlm_edge.vision.raster import Picture
from vlm_edge.vision.resize import cell_boxes, cut, enlarged_windows, require_rgb, resized, source_box

__all__ = ["ImageSettings", "prepare", "settings_from"]


def prepare(image: Picture, settings: ImageSettings, layout: ImageLayout | None = None) -> ImageInputs:
    """uint8 [H, W, 3] -> pixel_values float32 [V, 3, S, S], tiles row by row, then the thumbnail; raises BadImage.

    layout: another one than the family's own, by settings.geometry.subset.
    """
    image_px = require_rgb(image)
    layout = layout or settings.geometry.layout(image_px)
    side = settings.geometry.view_px
    tiles = cell_boxes(layout, side)
    if layout.cells is not None and all(to >= size for to, size in zip(layout.canvas_px, image_px, strict=True)):
        views = enlarged_windows(image, layout.canvas_px, tiles, settings.resample)
    else:
        canvas = resized(image, layout.canvas_px, settings.resample)
        views = [cut(canvas, tile) for tile in tiles]
    boxes = [source_box(tile, layout.content, image_px) for tile in tiles]
    if layout.views > len(tiles):
        views.append(resized(image, (side, side), settings.resample))
        boxes.append((0, 0, *image_px))
    return ImageInputs({"pixel_values": settings.pixels.stack(views)}, tuple(boxes), layout)

"""LLaVA-NeXT: the whole image in one view, then tiles of it at the pinpoint that suits it best (AnyRes)."""

from __future__ import annotations

from vlm_edge.core.geometry import Box, ImageLayout
from vlm_edge.core.image_inputs import ImageInputs
from vlm_edge.models.llava_next.settings import ImageSettings, settings_from
from vlm_edge.vision.raster import Picture, crops
from vlm_edge.vision.resize import Rgb, cell_boxes, cut, padded, require_rgb, resized, source_box

__all__ = ["ImageSettings", "prepare", "settings_from"]

_BLACK = (0, 0, 0)


def prepare(image: Picture, settings: ImageSettings, layout: ImageLayout | None = None) -> ImageInputs:
    """uint8 [H, W, 3] -> pixel_values float32 [1 + N, 3, S, S], the whole image first; raises BadImage otherwise.

    The image lies centred on a black canvas of the pinpoint's size; `layout.token_grid` says which part of the tiles'
    tokens remains, also centred, and a newline token ends each of its rows.
    layout: another one than the family's own, by settings.geometry.subset.
    """
    image_px = require_rgb(image)
    layout = layout or settings.geometry.layout(image_px)
    side = settings.geometry.view_px
    if layout.views == 1:
        view = resized(image, (side, side), settings.resample)
        return ImageInputs({"pixel_values": settings.pixels.stack([view])}, ((0, 0, *image_px),), layout)
    tiles = cell_boxes(layout, side)
    views = [resized(image, (side, side), settings.resample), *_tiles(image, layout, tiles, settings)]
    boxes = ((0, 0, *image_px), *(source_box(tile, layout.content, image_px) for tile in tiles))
    return ImageInputs({"pixel_values": settings.pixels.stack(views)}, boxes, layout)


def _tiles(image: Picture, layout: ImageLayout, tiles: tuple[Box, ...], settings: ImageSettings) -> list[Rgb]:
    """Tiles of the canvas; where the image lies on it as it is, their own pixels are all that is read of it."""
    x0, y0, x1, y1 = layout.content
    if (x1 - x0, y1 - y0) != require_rgb(image):
        fitted = resized(image, (x1 - x0, y1 - y0), settings.resample)
        canvas = padded(fitted, (0, 0, *layout.canvas_px), (x0, y0), _BLACK)
        return [cut(canvas, tile) for tile in tiles]
    shown = [(max(left, x0), max(top, y0), min(right, x1), min(low, y1)) for left, top, right, low in tiles]
    inside = [(left - x0, top - y0, max(left, right) - x0, max(top, low) - y0) for left, top, right, low in shown]
    return [
        padded(part, tile, (left, top), _BLACK)
        for part, tile, (left, top, _, _) in zip(crops(image, inside), tiles, shown, strict=True)
    ]

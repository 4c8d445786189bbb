"""LLaVA-1.5: an image in one view, cropped, squeezed or padded to the square that its tower takes."""

from __future__ import annotations

from vlm_edge.core.geometry import Box, Size
from vlm_edge.core.image_inputs import ImageInputs
from vlm_edge.models.llava.settings import ImageSettings, settings_from
from vlm_edge.vision.resize import Rgb, require_rgb, resized_window, source_box, squared

__all__ = ["ImageSettings", "prepare", "settings_from"]


def prepare(image: Rgb, settings: ImageSettings) -> ImageInputs:
    """uint8 [H, W, 3] -> pixel_values float32 [1, 3, S, S]; raises BadImage for any other array."""
    image_px = require_rgb(image)
    side = settings.geometry.view_px
    if settings.background is not None:
        view = squared(image, side, settings.background, settings.resample)
        box: Box = (0, 0, *image_px)
        edge = max(image_px)
        x0, y0 = (-((edge - length) // 2) for length in image_px)
        frame: tuple[float, float, float, float] = (x0, y0, x0 + edge, y0 + edge)
    else:
        to_px, window = _resize_and_crop(image_px, settings)
        view = resized_window(image, to_px, window, settings.resample)
        box = source_box(window, (0, 0, *to_px), image_px)
        across, down = (length / to for length, to in zip(image_px, to_px, strict=True))
        frame = (window[0] * across, window[1] * down, window[2] * across, window[3] * down)
    layout = settings.geometry.layout(image_px)
    return ImageInputs({"pixel_values": settings.pixels.stack([view])}, (box,), layout, frame)


def _resize_and_crop(image_px: Size, settings: ImageSettings) -> tuple[Size, Box]:
    """(size of the whole image, box of it that becomes the view)."""
    side = settings.geometry.view_px
    if settings.shortest_px is None:
        return (side, side), (0, 0, side, side)
    shorter = min(image_px)
    to_px = tuple(int(settings.shortest_px * edge / shorter) for edge in image_px)
    left, top = ((edge - side) // 2 for edge in to_px)
    return (to_px[0], to_px[1]), (left, top, left + side, top + side)

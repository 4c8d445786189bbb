"""PaliGemma: an image squeezed to one square view."""

from __future__ import annotations

from vlm_edge.core.image_inputs import ImageInputs
from vlm_edge.models.paligemma.settings import ImageSettings, settings_from
from vlm_edge.vision.resize import Rgb, require_rgb, resized

__all__ = ["ImageSettings", "prepare", "settings_from"]


def prepare(image: Rgb, settings: ImageSettings) -> ImageInputs:
    """uint8 [H, W, 3] -> pixel_values float32 [1, 3, S, S]; raises BadImage for any other array."""
    image_px = require_rgb(image)
    side = settings.geometry.view_px
    view = resized(image, (side, side), settings.resample)
    return ImageInputs(
        {"pixel_values": settings.pixels.stack([view])}, ((0, 0, *image_px),), settings.geometry.layout(image_px)
    )

"""Idefics2: an image at nearly its own size and proportions, alone or after its four quarters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.image_inputs import ImageInputs
from vlm_edge.models.idefics2.settings import ImageSettings, settings_from
from vlm_edge.vision.resize import Rgb, cut, require_rgb, resized

__all__ = ["ImageSettings", "prepare", "settings_from"]


def prepare(image: Rgb, settings: ImageSettings) -> ImageInputs:
    """uint8 [H, W, 3] -> the encoder's inputs; the four quarters come first. Raises BadImage, or BadInput if too thin.

    pixel_values float32 [V, 3, H, W], views of unequal size padded with 0 at the right and below.
    pixel_attention_mask bool [V, H, W] and patch_attention_mask bool [V, h, w]: what is image; a patch must be all image.
    position_ids int64 [V, h * w]: rows of the position table, which the encoder spreads over views of any proportions.
    """
    image_px = require_rgb(image)
    layout = settings.geometry.layout(image_px)
    parts = settings.geometry.parts(image_px)
    width, height = layout.canvas_px
    pixel_values = np.zeros((len(parts), 3, height, width), np.float32)
    pixel_mask = np.zeros((len(parts), height, width), np.bool_)
    patch_px = settings.patch_px
    patch_mask = np.zeros((len(parts), height // patch_px, width // patch_px), np.bool_)
    for i, part in enumerate(parts):
        wide, high = settings.geometry.fitted_px((part[2] - part[0], part[3] - part[1]))
        settings.pixels.apply(
            resized(cut(image, part), (wide, high), settings.resample), pixel_values[i, :, :high, :wide]
        )
        pixel_mask[i, :high, :wide] = True
        patch_mask[i, : high // patch_px, : wide // patch_px] = True
    arrays = {
        "pixel_values": pixel_values,
        "pixel_attention_mask": pixel_mask,
        "patch_attention_mask": patch_mask,
        "position_ids": position_ids(patch_mask, settings.positions_side),
    }
    return ImageInputs(arrays, parts, layout)


def position_ids(patch_mask: NDArray[np.bool_], side: int) -> NDArray[np.int64]:
    """Mask of patches [V, h, w] -> index int64 [V, h * w] into a table of side x side positions; 0 where masked.

    A view's patches are spread over the table: patch i of n in a row reads column floor(i / n * side), in float32.
    """
    bounds = np.arange(1, side, dtype=np.float64) / side
    ids = np.zeros(patch_mask.shape, np.int64)
    for view, mask in zip(ids, patch_mask, strict=True):
        rows, cols = int(mask[:, 0].sum()), int(mask[0].sum())
        down, across = (_bucket(count, bounds) for count in (rows, cols))
        view[:rows, :cols] = down[:, None] * side + across
    return ids.reshape(len(ids), -1)


def _bucket(count: int, bounds: NDArray[np.float64]) -> NDArray[np.int64]:
    fractions = np.arange(count, dtype=np.float32) * (np.float32(1) / np.float32(count))
    last = np.float32(1 - 1e-6)
    return np.asarray(np.searchsorted(bounds.astype(np.float32), np.minimum(fractions, last), side="right"), np.int64)

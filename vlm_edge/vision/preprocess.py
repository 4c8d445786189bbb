"""From a full-resolution image to the square views that an encoder takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlm_edge.vision.tiling import Tile

Rgb = NDArray[np.uint8]


def global_view(pixels: Rgb, side_px: int) -> Rgb:
    """The whole image [H, W, 3] squeezed to [side_px, side_px, 3]; its proportions are not kept."""
    return np.asarray(Image.fromarray(pixels).resize((side_px, side_px), Image.Resampling.BICUBIC))


def crop(pixels: Rgb, tile: Tile, side_px: int) -> Rgb:
    """A tile's pixels at full resolution; where the image is smaller than a tile its edge pixels are repeated."""
    view = pixels[tile.y0 : tile.y1, tile.x0 : tile.x1]
    missing = (side_px - view.shape[0], side_px - view.shape[1])
    if any(missing):
        view = np.pad(view, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
    return np.ascontiguousarray(view)


def grey(pixels: Rgb) -> NDArray[np.uint8]:
    """Brightness [H, W] by the ITU-R 601 weights, as Pillow's mode L."""
    return np.asarray(Image.fromarray(pixels).convert("L"))

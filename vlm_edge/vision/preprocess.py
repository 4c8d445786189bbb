"""From a full-resolution image to the square views that an encoder takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlm_edge.vision.raster import Picture
from vlm_edge.vision.resize import resized
from vlm_edge.vision.tiling import Tile

Rgb = NDArray[np.uint8]


def global_view(pixels: Picture, side_px: int) -> Rgb:
    """The whole image squeezed to [side_px, side_px, 3]; its proportions are not kept."""
    return resized(pixels, (side_px, side_px), Image.Resampling.BICUBIC)


def crop(pixels: Rgb, tile: Tile, side_px: int) -> Rgb:
    """A tile's pixels at full resolution; where the image is smaller than a tile its edge pixels are repeated."""
    return filled(pixels[tile.y0 : tile.y1, tile.x0 : tile.x1], side_px)


def filled(view: Rgb, side_px: int) -> Rgb:
    """A view of [side_px, side_px, 3] that repeats the last row and column of what is smaller."""
    missing = (side_px - view.shape[0], side_px - view.shape[1])
    if any(missing):
        view = np.pad(view, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
    return np.ascontiguousarray(view)


def grey(pixels: Rgb) -> NDArray[np.uint8]:
    """Brightness [H, W] by the ITU-R 601 weights, as Pillow's mode L."""
    return np.asarray(Image.fromarray(pixels).convert("L"))

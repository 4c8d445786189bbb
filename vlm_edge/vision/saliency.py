"""Saliency: where an image holds detail that its low-resolution global view cannot show."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

STRIP_PIXELS = 1 << 19
"""Pixels of an image that are looked at together, at about 16 B each; at least one row of cells."""
NOISE_FACTOR = 3.0
"""What counts as an image's own grain: this many times the median cell's lost variation."""


def detail(gray: NDArray[np.uint8], *, cell_px: int) -> NDArray[np.float32]:
    """Contrast of strokes: how far apart the greys of a cell are, where averaging the cell would lose them.

    gray: uint8 [H, W].  Returns float32 [ceil(H / cell_px), ceil(W / cell_px)]: max - min of a cell's greys, times the fourth
    root of its lost variation (see lost_variation) above the image's grain. Strong ink counts more than light ink, and how
    dense the strokes are counts little, so one dark line wins against a block of pale text.
    """
    lost = lost_variation(gray, cell_px=cell_px)
    above = np.clip(lost - NOISE_FACTOR * np.median(lost), 0, None)
    contrast = _reduce(np.maximum, gray, cell_px).astype(np.float32) - _reduce(np.minimum, gray, cell_px)
    return np.asarray(contrast * above**0.25, np.float32)


def lost_variation(gray: NDArray[np.uint8], *, cell_px: int) -> NDArray[np.float32]:
    """How much of the brightness variation in each cell is lost when the cell is averaged, in grey levels per pixel.

    Inside a cell the rises and the falls along rows (and along columns) are summed apart. What an average of the cell
    still shows is their difference, the net change; what it loses is the part that cancels, 2 * min(rise, fall).
    Printed strokes rise and fall within a few pixels, so text scores high; the edge of a large shape only rises or only
    falls, so it scores nothing. The image is read in strips, so memory stays bounded.
    """
    height, width = gray.shape
    out = np.empty((-(-height // cell_px), -(-width // cell_px)), np.float32)
    strip_px = max(1, STRIP_PIXELS // (cell_px * width)) * cell_px
    for top in range(0, height, strip_px):
        strip = gray[top : top + strip_px + 1].astype(np.int16)
        body = strip[:strip_px]
        across = np.diff(body, axis=1, append=body[:, -1:])
        down = np.diff(strip, axis=0, append=strip[-1:])[: body.shape[0]]
        lost = _cancelled(across, cell_px) + _cancelled(down, cell_px)
        first = top // cell_px
        out[first : first + lost.shape[0]] = lost
    out /= np.float32(cell_px * cell_px)
    return out


def _cancelled(change: NDArray[np.int16], cell_px: int) -> NDArray[np.float32]:
    """2 * min(sum of rises, sum of falls) in each cell of a difference image."""
    wide = change.astype(np.int32)
    net = _reduce(np.add, wide, cell_px)
    rises = _reduce(np.add, np.maximum(wide, 0, out=wide), cell_px)
    return np.asarray(2 * np.minimum(rises, rises - net), np.float32)


def _reduce(function: np.ufunc, values: NDArray[Any], cell_px: int) -> NDArray[Any]:
    """A ufunc over each cell: [H, W] -> [ceil(H / cell_px), ceil(W / cell_px)]."""
    # sums of a cell fit the values' own type; left to itself, NumPy would copy all of them into 64 bits
    by_row = function.reduceat(values, np.arange(0, values.shape[0], cell_px), axis=0, dtype=values.dtype)
    return np.asarray(function.reduceat(by_row, np.arange(0, values.shape[1], cell_px), axis=1, dtype=values.dtype))

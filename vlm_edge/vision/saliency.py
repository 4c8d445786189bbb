"""Saliency: where an image holds detail that its low-resolution global view cannot show."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STRIP_CELLS = 64


def detail(gray: NDArray[np.uint8], *, cell_px: int) -> NDArray[np.float32]:
    """How much of the brightness variation in each cell is lost when the cell is averaged.

    gray: uint8 [H, W].  Returns float32 [ceil(H / cell_px), ceil(W / cell_px)], in grey levels per pixel.

    Inside a cell the rises and the falls along rows (and along columns) are summed apart. What an average of the cell
    still shows is their difference, the net change; what it loses is the part that cancels, 2 * min(rise, fall).
    Printed strokes rise and fall within a few pixels, so text scores high; the edge of a large shape only rises or only
    falls, so it scores nothing. The image is read in strips, so memory stays bounded by the width.
    """
    height, width = gray.shape
    out = np.empty((-(-height // cell_px), -(-width // cell_px)), np.float32)
    strip_px = STRIP_CELLS * cell_px
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
    net = _cell_sums(change, cell_px)
    rises = _cell_sums(np.maximum(change, 0), cell_px)
    lost: NDArray[np.float32] = 2 * np.minimum(rises, rises - net)
    return lost


def _cell_sums(values: NDArray[np.int16], cell_px: int) -> NDArray[np.float32]:
    row_starts = np.arange(0, values.shape[0], cell_px)
    col_starts = np.arange(0, values.shape[1], cell_px)
    by_row = np.add.reduceat(values, row_starts, axis=0, dtype=np.int32)
    return np.add.reduceat(by_row, col_starts, axis=1).astype(np.float32)

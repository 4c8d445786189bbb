"""Tiling: which few full-resolution windows of an image to show beside its global view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CUT_WEIGHT = 10.0
LEAST_CUT_WEIGHT = 0.1
NEIGHBOUR_BONUS = 0.05
CENTER_BONUS = 0.002


@dataclass(frozen=True)
class Tile:
    """A square window in source pixels, clipped to the image, and the saliency that it covers first."""

    x0: int
    y0: int
    x1: int
    y1: int
    score: float

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1) in source pixels."""
        return self.x0, self.y0, self.x1, self.y1


def salient_tiles(
    saliency: NDArray[np.float32],
    *,
    image_px: tuple[int, int],
    tile_px: int,
    cell_px: int,
    max_tiles: int,
    power: float = 2.0,
    noise_factor: float = 3.0,
    min_share: float = 0.01,
) -> tuple[Tile, ...]:
    """Up to `max_tiles` windows that together cover the most saliency, in reading order.

    saliency: float32 [rows, cols], one value per cell_px x cell_px cell.  image_px: (width, height).  tile_px is a
    multiple of cell_px.  Values under `noise_factor` times the median cell count as background; the rest is raised to
    `power`, so that a few strong cells outweigh many weak ones.

    Windows are chosen greedily. A window's worth is what it covers that no earlier one does, less CUT_WEIGHT times what
    its border cuts through: a window that would halve a word loses against one that holds it whole. Where something is
    wider than a window, a window that abuts the first one cuts nothing more, so wide lines come out as neighbours.
    Where detail fills so much that any window cuts more than it covers, CUT_WEIGHT is halved until the first one pays.
    Selection stops when a window adds less than `min_share` of what the first one covered.
    """
    width, height = image_px
    span = tile_px // cell_px
    energy = np.clip(saliency - noise_factor * np.median(saliency), 0, None) ** power
    rows, cols = energy.shape
    energy = np.pad(energy, ((0, max(0, span - rows)), (0, max(0, span - cols)))).astype(np.float64)
    tiles: list[Tile] = []
    corners: list[tuple[int, int]] = []
    first = 0.0
    cut_weight = CUT_WEIGHT
    while len(tiles) < max_tiles:
        covered = _window_sums(energy, span, span)
        worth = covered - cut_weight * _cut_by_border(energy, span)
        scale = float(covered.max())
        if scale <= 0:
            break
        worth += scale * CENTER_BONUS * _centring(energy, span)
        worth += scale * NEIGHBOUR_BONUS * _abutting(worth.shape, corners, span)
        row, col = np.unravel_index(int(np.argmax(worth)), worth.shape)
        gain = float(covered[row, col])
        if not tiles:
            if gain <= min_share * scale and cut_weight > LEAST_CUT_WEIGHT:
                cut_weight /= 2
                continue
            first = gain
        if gain <= min_share * first:
            break
        x0 = max(0, min(int(col) * cell_px, width - tile_px))
        y0 = max(0, min(int(row) * cell_px, height - tile_px))
        tiles.append(Tile(x0, y0, min(x0 + tile_px, width), min(y0 + tile_px, height), gain))
        corners.append((int(row), int(col)))
        energy[row : row + span, col : col + span] = 0
    return reading_order(tiles)


def grid_tiles(*, image_px: tuple[int, int], tile_px: int, max_tiles: int) -> tuple[Tile, ...]:
    """At most max_tiles of a regular grid, row by row; the last of each row and column is moved inside the image."""
    width, height = image_px
    xs = [max(0, min(x, width - tile_px)) for x in range(0, width, tile_px)]
    ys = [max(0, min(y, height - tile_px)) for y in range(0, height, tile_px)]
    boxes = [(x, y) for y in ys for x in xs][:max_tiles]
    return tuple(Tile(x, y, min(x + tile_px, width), min(y + tile_px, height), 0.0) for x, y in boxes)


def reading_order(tiles: list[Tile]) -> tuple[Tile, ...]:
    """Top to bottom, then left to right; tiles that abut on the left and right and share rows stay together."""
    rest = sorted(tiles, key=lambda tile: (tile.y0, tile.x0))
    ordered: list[Tile] = []
    while rest:
        tile = rest.pop(0)
        left = next((t for t in rest if t.x1 == tile.x0 and abs(t.y0 - tile.y0) < (tile.y1 - tile.y0) // 2), None)
        if left is not None:
            rest.remove(left)
            rest.insert(0, tile)
            tile = left
        ordered.append(tile)
        right = next((t for t in rest if t.x0 == tile.x1 and abs(t.y0 - tile.y0) < (tile.y1 - tile.y0) // 2), None)
        if right is not None:
            rest.remove(right)
            rest.insert(0, right)
    return tuple(ordered)


def _window_sums(values: NDArray[np.float64], rows: int, cols: int) -> NDArray[np.float64]:
    """Sum of every rows x cols window: [R, C] -> [R - rows + 1, C - cols + 1]."""
    total = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums: NDArray[np.float64] = total[rows:, cols:] - total[:-rows, cols:]
    sums -= total[rows:, :-cols]
    sums += total[:-rows, :-cols]
    return sums


def _cut_by_border(energy: NDArray[np.float64], span: int) -> NDArray[np.float64]:
    """What each window's border runs through: the smaller of the cells on its two sides, summed along the border."""
    padded = np.pad(energy, 1)
    beside = np.minimum(padded[1:-1, :-1], padded[1:-1, 1:])
    above = np.minimum(padded[:-1, 1:-1], padded[1:, 1:-1])
    vertical = _window_sums(beside, span, 1)
    horizontal = _window_sums(above, 1, span)
    return vertical[:, :-span] + vertical[:, span:] + horizontal[:-span] + horizontal[span:]


def _centring(energy: NDArray[np.float64], span: int) -> NDArray[np.float64]:
    """1 where a window's middle half holds all that the window holds, 0 where it holds none of it."""
    margin = span // 8
    inner = _window_sums(energy, span - 2 * margin, span - 2 * margin)
    rows, cols = energy.shape[0] - span + 1, energy.shape[1] - span + 1
    inner = inner[margin : margin + rows, margin : margin + cols]
    whole = _window_sums(energy, span, span)
    return np.divide(inner, whole, out=np.zeros_like(whole), where=whole > 1e-9)


def _abutting(shape: tuple[int, ...], corners: list[tuple[int, int]], span: int) -> NDArray[np.float64]:
    """1 at window positions exactly left or right of a chosen window, in the same rows."""
    bonus = np.zeros(shape)
    for row, col in corners:
        for neighbour in (col - span, col + span):
            if 0 <= neighbour < shape[1]:
                bonus[row, neighbour] = 1
    return bonus

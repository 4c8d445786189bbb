"""Tiling: which few full-resolution windows of an image to show beside its global view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.layout import Box

CUT_WEIGHT = 30.0
LEAST_CUT_WEIGHT = 0.1
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


@dataclass(frozen=True)
class Chosen:
    """Tiles of a grid by their numbers, what each holds, and the share of all saliency that they hold together."""

    numbers: tuple[int, ...]
    scores: tuple[float, ...]
    share: float


def salient_tiles(
    saliency: NDArray[np.float32],
    *,
    image_px: tuple[int, int],
    tile_px: int,
    cell_px: int,
    max_tiles: int,
    power: float = 2.0,
    min_share: float = 0.01,
) -> tuple[Tile, ...]:
    """Up to `max_tiles` windows that together cover the most saliency, in reading order.

    saliency: float32 [rows, cols], one value per cell_px x cell_px cell.  image_px: (width, height).  tile_px is a
    multiple of cell_px.  Values are raised to `power`, so that a few strong cells outweigh many weak ones.

    Windows are chosen greedily, by what they cover that no earlier one does, less CUT_WEIGHT times what their border cuts
    through: a window that would halve a word loses against one that holds it whole. For what is wider than a window, two
    windows side by side are tried as one, and win when their worth per tile is higher; they abut exactly, so a line of text
    goes on in the next tile where it left off. Selection stops when a window adds less than `min_share` of the first.
    Where detail fills so much that every window cuts more than it covers, the weight is halved until one pays.
    """
    span = tile_px // cell_px
    energy = saliency.astype(np.float64) ** power
    energy = np.pad(energy, [(0, max(0, span - size)) for size in energy.shape])
    tiles: list[Tile] = []
    first = 0.0
    cut_weight = CUT_WEIGHT
    while len(tiles) < max_tiles:
        single, pair = _best_window(energy, span, span, cut_weight), None
        if len(tiles) + 2 <= max_tiles and image_px[0] >= 2 * tile_px:
            pair = _best_window(energy, span, 2 * span, cut_weight)
        wide = pair is not None and pair.worth / 2 > single.worth
        chosen = pair if pair is not None and wide else single
        gains = [_gain(energy, chosen.row, chosen.col + i * span, span) for i in range(2 if wide else 1)]
        if max(gains) <= min_share * single.most and cut_weight > LEAST_CUT_WEIGHT:
            cut_weight /= 2  # every window that holds something cuts more than it covers
            continue
        first = first or max(gains)
        if max(gains) <= min_share * first:
            break
        left = max(0, min(chosen.col * cell_px, image_px[0] - tile_px * len(gains)))
        tiles += [
            _tile(left + i * tile_px, chosen.row * cell_px, image_px, tile_px, gain) for i, gain in enumerate(gains)
        ]
        energy[chosen.row : chosen.row + span, chosen.col : chosen.col + span * len(gains)] = 0
    return reading_order(tiles)


def salient_cells(
    saliency: NDArray[np.float32],
    boxes: Sequence[Box],
    *,
    cell_px: int,
    max_tiles: int,
    power: float = 2.0,
    min_share: float = 0.01,
) -> Chosen:
    """Which of a grid's tiles to show: the up to `max_tiles` that hold most saliency, less those with next to none.

    saliency: float32 [rows, cols], one value per cell_px x cell_px cell, raised to `power` as in salient_tiles.  boxes: of the
    tiles in source pixels; a cell belongs to the tile that its middle lies in.
    A tile that has less than `min_share` of the first one's is left out.
    """
    energy = saliency.astype(np.float64) ** power
    held = np.zeros(len(boxes))
    for i, box in enumerate(boxes):
        x0, y0, x1, y1 = (-(-(2 * edge - cell_px) // (2 * cell_px)) for edge in box)
        held[i] = energy[max(0, y0) : y1, max(0, x0) : x1].sum()
    order = np.argsort(-held, kind="stable")[:max_tiles]
    chosen = tuple(sorted(int(i) for i in order if held[i] > min_share * held.max(initial=0.0)))
    total = float(held.sum())
    return Chosen(chosen, tuple(float(held[i]) for i in chosen), sum(held[i] for i in chosen) / total if total else 1.0)


@dataclass(frozen=True)
class _Window:
    row: int
    col: int
    worth: float
    most: float


def _best_window(energy: NDArray[np.float64], rows: int, cols: int, cut_weight: float) -> _Window:
    """The rows x cols window that covers most and cuts least; among equals, the one that centres what it covers."""
    covered = _window_sums(energy, rows, cols)
    worth = covered - cut_weight * _cut_by_border(energy, rows, cols)
    worth += CENTER_BONUS * covered.max() * _centring(energy, covered, rows, cols)
    row, col = np.unravel_index(int(np.argmax(worth)), worth.shape)
    return _Window(int(row), int(col), float(worth[row, col]), float(covered.max()))


def _gain(energy: NDArray[np.float64], row: int, col: int, span: int) -> float:
    return float(energy[row : row + span, col : col + span].sum())


def _tile(x0: int, y0: int, image_px: tuple[int, int], tile_px: int, score: float) -> Tile:
    """A tile moved inside the image; where the image is smaller than a tile, clipped to it."""
    x0, y0 = (max(0, min(at, size - tile_px)) for at, size in zip((x0, y0), image_px, strict=True))
    return Tile(x0, y0, min(x0 + tile_px, image_px[0]), min(y0 + tile_px, image_px[1]), score)


def grid_tiles(*, image_px: tuple[int, int], tile_px: int, max_tiles: int) -> tuple[Tile, ...]:
    """At most max_tiles of a regular grid, row by row; the last of each row and column is moved inside the image."""
    width, height = image_px
    xs = [max(0, min(x, width - tile_px)) for x in range(0, width, tile_px)]
    ys = [max(0, min(y, height - tile_px)) for y in range(0, height, tile_px)]
    return tuple(_tile(x, y, image_px, tile_px, 0.0) for y in ys for x in xs)[:max_tiles]


def reading_order(tiles: list[Tile]) -> tuple[Tile, ...]:
    """Top to bottom, then left to right; tiles that abut on the left and right and share rows stay together."""
    rest = sorted(tiles, key=lambda tile: (tile.y0, tile.x0))
    ordered: list[Tile] = []
    while rest:
        row = [rest.pop(0)]
        while left := next((t for t in rest if t.x1 == row[0].x0 and _same_row(t, row[0])), None):
            rest.remove(left)
            row.insert(0, left)
        while right := next((t for t in rest if t.x0 == row[-1].x1 and _same_row(t, row[-1])), None):
            rest.remove(right)
            row.append(right)
        ordered += row
    return tuple(ordered)


def strips(tiles: Sequence[Tile]) -> tuple[tuple[int, ...], ...]:
    """Indices of tiles in reading order, those that abut side by side over the same rows of the image in one group.

    Example: tiles at x = 0, 112, 224 of one height, 112 px wide, and one further down -> ((0, 1, 2), (3,)).
    """
    groups: list[tuple[int, ...]] = []
    for i, tile in enumerate(tiles):
        last = tiles[i - 1]
        if i and (last.x1, last.y0, last.y1) == (tile.x0, tile.y0, tile.y1):
            groups[-1] += (i,)
        else:
            groups.append((i,))
    return tuple(groups)


def _same_row(one: Tile, other: Tile) -> bool:
    """Whether two tiles share more than half of their rows."""
    return abs(one.y0 - other.y0) < (one.y1 - one.y0) // 2


def _window_sums(values: NDArray[np.float64], rows: int, cols: int) -> NDArray[np.float64]:
    """Sum of every rows x cols window: [R, C] -> [R - rows + 1, C - cols + 1]."""
    total = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums: NDArray[np.float64] = total[rows:, cols:] - total[:-rows, cols:]
    sums -= total[rows:, :-cols]
    sums += total[:-rows, :-cols]
    return sums


def _cut_by_border(energy: NDArray[np.float64], rows: int, cols: int) -> NDArray[np.float64]:
    """What each window's border runs through: the smaller of the cells on its two sides, summed along the border."""
    padded = np.pad(energy, 1)
    beside = np.minimum(padded[1:-1, :-1], padded[1:-1, 1:])
    above = np.minimum(padded[:-1, 1:-1], padded[1:, 1:-1])
    vertical = _window_sums(beside, rows, 1)
    horizontal = _window_sums(above, 1, cols)
    return vertical[:, :-cols] + vertical[:, cols:] + horizontal[:-rows] + horizontal[rows:]


def _centring(energy: NDArray[np.float64], covered: NDArray[np.float64], rows: int, cols: int) -> NDArray[np.float64]:
    """The share of what a window covers that lies no nearer to its border than an eighth of its height."""
    margin = rows // 8
    inner = _window_sums(energy, rows - 2 * margin, cols - 2 * margin)
    inner = inner[margin : margin + covered.shape[0], margin : margin + covered.shape[1]]
    return np.divide(inner, covered, out=np.zeros_like(covered), where=covered > 1e-9)

"""Saliency: which parts of an image deserve a tile at full resolution. Three sources, each a map float32 [rows, cols] over it.

detail: contrast that the global view cannot show, from pixels alone.  cnn: what a small network learnt to flag.  novelty: how
unlike its surroundings each token of the global view is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlm_edge.core.contracts import SaliencyRunner
from vlm_edge.errors import BadInput
from vlm_edge.vision.raster import Picture, bands_of, size_of

STRIP_PX = 1 << 19
"""Pixels of an image that are worked on together, at about 16 B each; at least one row of cells."""
NOISE_FACTOR = 3.0
"""What counts as an image's own grain: this many times the median cell's lost variation."""
BLOCK_PX, HALO_PX = 512, 64
"""A network is shown blocks of this side, and so much around each: what lies farther away has no effect on a block."""
BLOCK_BYTES_PER_PX = 64
"""Bound on what a light network holds for a pixel of a block; the embedded one was measured at 36."""
RING = 2
"""How many tokens to each side are a token's surroundings."""
Rgb = NDArray[np.uint8]


def detail(gray: NDArray[np.uint8], *, cell_px: int) -> NDArray[np.float32]:
    """Contrast of strokes: how far apart the greys of a cell are, where averaging the cell would lose them.

    gray: uint8 [H, W].  Returns float32 [ceil(H / cell_px), ceil(W / cell_px)]: max - min of a cell's greys, times the fourth
    root of its lost variation (see lost_variation) above the image's grain. Strong ink counts more than light ink, and how
    dense the strokes are counts little, so one dark line wins against a block of pale text.
    """
    return detail_of_bands([gray], cell_px=cell_px)


def detail_of_bands(bands: Iterable[NDArray[np.uint8]], *, cell_px: int) -> NDArray[np.float32]:
    """`detail` of an image that comes in bands from top to bottom, uint8 [h, W] or RGB [h, W, 3], of any heights.

    Memory: one band, one strip (see STRIP_PX), and four bytes for each cell.
    """
    lost, contrast = [], []
    for strip, below in _strips(bands, cell_px):
        lost.append(_lost(strip, below, cell_px))
        contrast.append(_reduce(np.maximum, strip, cell_px).astype(np.float32) - _reduce(np.minimum, strip, cell_px))
    variation = np.concatenate(lost)
    above = np.clip(variation - NOISE_FACTOR * np.median(variation), 0, None)
    return np.asarray(np.concatenate(contrast) * above**0.25, np.float32)


def lost_variation(gray: NDArray[np.uint8], *, cell_px: int) -> NDArray[np.float32]:
    """How much of the brightness variation in each cell is lost when the cell is averaged, in grey levels per pixel.

    Inside a cell the rises and the falls along rows (and along columns) are summed apart. What an average of the cell
    still shows is their difference, the net change; what it loses is the part that cancels, 2 * min(rise, fall).
    Printed strokes rise and fall within a few pixels, so text scores high; the edge of a large shape only rises or only
    falls, so it scores nothing.
    """
    return np.concatenate([_lost(strip, below, cell_px) for strip, below in _strips([gray], cell_px)])


def cnn(picture: Picture, runner: SaliencyRunner, *, cell_px: int) -> NDArray[np.float32]:
    """What a network makes of an image, brought to cells of cell_px.

    picture: uint8 [H, W, 3], or a raster, of which no more than a row of blocks is held.
    Returns float32 [ceil(H / cell_px), ceil(W / cell_px)].  The network is shown one block of BLOCK_PX after another with HALO_PX
    around it, so that memory does not grow with the image; over the image's edges its last row and column of pixels are repeated.
    Raises BadInput when its values are negative, not finite, or not one for each stride_px.
    """
    stride = runner.stride_px
    width, height = size_of(picture)
    rows, cols = -(-height // stride), -(-width // stride)
    halo = -(-HALO_PX // stride)
    high, wide = (_even_parts(cells, max(1, BLOCK_PX // stride)) for cells in (rows, cols))
    wanted = (1, high + 2 * halo, wide + 2 * halo)
    out = np.empty((rows, cols), np.float32)
    image = _RowWindow(bands_of(picture))
    for top in range(0, rows, high):
        ys = _clipped(top - halo, wanted[1], stride, height)
        strip = image.rows(int(ys[0]), int(ys[-1]) + 1)
        for left in range(0, cols, wide):
            xs = _clipped(left - halo, wanted[2], stride, width)
            block = strip[:, xs[0] : xs[-1] + 1][ys - ys[0]][:, xs - xs[0]]
            shown = np.ascontiguousarray(block.transpose(2, 0, 1)[None], np.float32) / np.float32(255)
            found = runner.run(shown)
            if found.shape != wanted or not np.isfinite(found).all() or found.min() < 0:
                raise BadInput(
                    f"the saliency model gives {list(found.shape)} for {list(shown.shape)}, or values below 0 or not finite",
                    remedy=f"give {list(wanted)}: a value of 0 or more for each {stride} x {stride} px",
                )
            inner = found[0, halo : halo + high, halo : halo + wide]
            out[top : top + high, left : left + wide] = inner[: rows - top, : cols - left]
    return to_cells(out, image_px=(width, height), cell_px=cell_px)


def cnn_bytes(model_bytes: int, *, width_px: int = 0) -> int:
    """Bound on what `cnn` takes beside the image, for a light network of that size: a planner's figure.

    width_px: of an image that is read by parts, of which two rows of blocks are held while they are joined.
    """
    side = BLOCK_PX + 2 * HALO_PX
    return 2 * model_bytes + BLOCK_BYTES_PER_PX * side**2 + 2 * 3 * side * width_px


class _RowWindow:
    """Rows of an image that comes in bands, asked for from top to bottom."""

    def __init__(self, bands: Iterator[Rgb]) -> None:
        self._bands, self._held, self._top = bands, np.empty((0, 0, 3), np.uint8), 0

    def rows(self, begin: int, end: int) -> Rgb:
        """Rows begin..end; those above `begin` are forgotten."""
        parts, have = [self._held[begin - self._top :]], self._top + len(self._held)
        while have < end:
            parts.append(next(self._bands))
            have += len(parts[-1])
        parts = [part for part in parts if len(part)]
        self._held, self._top = parts[0] if len(parts) == 1 else np.concatenate(parts), begin
        return self._held[: end - begin]


def novelty(features: NDArray[np.float32], *, grid: tuple[int, int]) -> NDArray[np.float32]:
    """How unlike its surroundings each token of a view is: 1 - cosine with the mean of the unit vectors around it.

    features: float32 [P, D] of a grid (rows, cols) with P = rows * cols.  Returns float32 [rows, cols], 0..2.  Surroundings are
    the tokens up to RING away to each side, less the token itself; what has none (a grid of one token), or is a zero
    vector, is not novel at all.
    """
    rows, cols = grid
    peaks = np.abs(features).max(axis=1, keepdims=True)
    scaled = (features / np.where(peaks > 0, peaks, 1)).astype(np.float64)
    lengths = np.sqrt((scaled**2).sum(1, keepdims=True))
    units = (scaled / np.where(lengths > 0, lengths, 1)).reshape(rows, cols, -1)
    total = np.pad(units.cumsum(0).cumsum(1), ((1, 0), (1, 0), (0, 0)))
    y0, y1 = np.clip(np.arange(rows) - RING, 0, None), np.clip(np.arange(rows) + RING + 1, None, rows)
    x0, x1 = np.clip(np.arange(cols) - RING, 0, None), np.clip(np.arange(cols) + RING + 1, None, cols)
    around = total[y1][:, x1] - total[y0][:, x1] - total[y1][:, x0] + total[y0][:, x0] - units
    size = np.sqrt((around**2).sum(-1))
    known = (size > 1e-9) & (lengths.reshape(rows, cols) > 0)
    cosines = np.divide((around * units).sum(-1), size, out=np.ones((rows, cols)), where=known)
    return np.asarray(np.clip(1 - cosines, 0, 2), np.float32)


def to_cells(saliency: NDArray[np.float32], *, image_px: tuple[int, int], cell_px: int) -> NDArray[np.float32]:
    """A map over the whole image (width, height) -> one value for each cell, between its values where cells are smaller."""
    width, height = image_px
    size = -(-width // cell_px), -(-height // cell_px)
    resized = Image.fromarray(np.asarray(saliency, np.float32)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32)


def _even_parts(cells: int, most: int) -> int:
    """The size of the fewest parts of at most `most` cells, all of one size."""
    return -(-cells // -(-cells // most))


def _clipped(first: int, cells: int, stride: int, size: int) -> NDArray[np.intp]:
    """Pixel indices of `cells` cells from `first` on, those outside the image replaced by its nearest."""
    return np.clip(np.arange(first * stride, (first + cells) * stride), 0, size - 1)


def _strips(bands: Iterable[NDArray[np.uint8]], cell_px: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Greys [h, W] in strips of whole rows of cells, each with the row below it [1, W]; the last row is below itself."""
    held: list[NDArray[np.uint8]] = []
    rows = 0
    for band in bands:
        strip_px = cell_px * max(1, STRIP_PX // (cell_px * band.shape[1]))
        for top in range(0, len(band), strip_px):
            held.append(_grey(band[top : top + strip_px]))
            rows += len(held[-1])
            while rows > strip_px:
                joined = np.concatenate(held) if len(held) > 1 else held[0]
                yield joined[:strip_px], joined[strip_px : strip_px + 1]
                held = [joined[strip_px:]]
                rows -= strip_px
    last = np.concatenate(held)
    yield last, last[-1:]


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Brightness by the ITU-R 601 weights, as Pillow's mode L; what is grey already stays as it is."""
    if pixels.ndim == 2:
        return pixels
    return np.asarray(Image.fromarray(pixels).convert("L"))


def _lost(strip: NDArray[np.uint8], below: NDArray[np.uint8], cell_px: int) -> NDArray[np.float32]:
    body = strip.astype(np.int16)
    across = np.diff(body, axis=1, append=body[:, -1:])
    down = np.diff(body, axis=0, append=below.astype(np.int16))
    lost = _cancelled(across, cell_px) + _cancelled(down, cell_px)
    return lost / np.float32(cell_px * cell_px)


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

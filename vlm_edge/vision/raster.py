"""Images that stay in their files: what an image is made into, band by band, bit for bit as from the whole of it.

A Picture is pixels or a Raster. Of a Raster no more than a few bands are held, and what is made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlm_edge.core.geometry import Box, Size
from vlm_edge.vision.bands import BAND_PX, open_bands
from vlm_edge.vision.sources import DEFAULT_MAX_PIXELS, Source
from vlm_edge.vision.taps import PRECISION_BITS, down_first, make_taps

Rgb = NDArray[np.uint8]
Colour = tuple[int, int, int]


class Raster(Protocol):
    """An image that is read from top to bottom, as often as it is asked for."""

    @property
    def width(self) -> int:
        """W in px."""
        ...

    @property
    def height(self) -> int:
        """H in px."""
        ...

    def bands(self) -> Iterator[Rgb]:
        """All rows, uint8 RGB [h, W, 3] at a time."""
        ...


Picture: TypeAlias = Rgb | Raster


@dataclass(frozen=True, eq=False)
class FileRaster:
    """A file that open_bands reads by parts; each reading decodes it anew."""

    source: Source
    width: int
    height: int
    max_pixels: int = DEFAULT_MAX_PIXELS

    def bands(self) -> Iterator[Rgb]:
        """The rows; raises BadImage where a band cannot be decoded."""
        return open_bands(self.source, max_pixels=self.max_pixels).rows


def size_of(picture: Picture) -> Size:
    """(width, height) in px."""
    return (picture.shape[1], picture.shape[0]) if isinstance(picture, np.ndarray) else (picture.width, picture.height)


def bands_of(picture: Picture) -> Iterator[Rgb]:
    """The rows of either kind."""
    return iter((picture,)) if isinstance(picture, np.ndarray) else picture.bands()


def crops(picture: Picture, boxes: Sequence[Box]) -> list[Rgb]:
    """Boxes (x0, y0, x1, y1) of the picture, uint8 [h, w, 3] each, in one reading."""
    if isinstance(picture, np.ndarray):
        return [picture[y0:y1, x0:x1] for x0, y0, x1, y1 in boxes]
    made = [np.empty((y1 - y0, x1 - x0, 3), np.uint8) for x0, y0, x1, y1 in boxes]
    last = max((box[3] for box in boxes), default=0)
    top = 0
    for band in picture.bands() if last else ():
        bottom = top + len(band)
        for (x0, y0, x1, y1), part in zip(boxes, made, strict=True):
            begin, end = max(y0, top), min(y1, bottom)
            if begin < end:
                part[begin - y0 : end - y0] = band[begin - top : end - top, x0:x1]
        top = bottom
        if top >= last:
            break
    return made


def shrunk(raster: Raster, to_px: Size, resample: int, *, window: Box | None = None) -> Rgb:
    """The raster at (width, height) `to_px`, as Pillow's resize of the whole image gives it; of that, `window` alone."""
    x0, y0, x1, y1 = window or (0, 0, *to_px)
    out = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
    top = 0
    for rows in Resampler((raster.width, raster.height), to_px, resample).through(raster.bands()):
        begin, end = max(y0, top), min(y1, top + len(rows))
        if begin < end:
            out[begin - y0 : end - y0] = rows[begin - top : end - top, x0:x1]
        top += len(rows)
    return out


def shrunk_square(raster: Raster, side_px: int, colour: Colour, resample: int) -> Rgb:
    """The raster in the middle of a square of one colour, resized to [side_px, side_px, 3]: as Pillow resizes the square.

    The square itself may be far larger than any memory; only what the image adds to the result is computed.
    """
    edge = max(raster.width, raster.height)
    left, top = (edge - raster.width) // 2, (edge - raster.height) // 2
    taps = make_taps(edge, side_px, 0, side_px, resample)
    weights = _weights(taps.first, taps.weights, left, raster.width).T
    outside = (taps.weights.sum(1) - weights.sum(0))[:, None] * np.array(colour, np.float64)
    down = _Down(edge, side_px, resample)
    rows = [down.push(blank) for blank in _blank(top, side_px, colour)]
    for band in raster.bands():
        for part in _pieces(band, max(1, BAND_PX // max(raster.width, side_px))):
            sums = np.einsum("hcw,wn->hnc", part.transpose(0, 2, 1).astype(np.float64), weights, optimize=True)
            rows.append(down.push(_rounded(sums + outside)))
    rows += [down.push(blank) for blank in _blank(edge - top - raster.height, side_px, colour)]
    return np.concatenate(rows)


def _blank(rows: int, width: int, colour: Colour) -> Iterator[Rgb]:
    step = max(1, BAND_PX // width)
    for top in range(0, rows, step):
        yield np.full((min(step, rows - top), width, 3), colour, np.uint8)


def _pieces(rows: Rgb, step: int) -> Iterator[Rgb]:
    return (rows[top : top + step] for top in range(0, len(rows), step))


class Resampler:
    """Pillow's resize of an image that comes in bands.

    Along rows Pillow does it, since a row of its result depends on one row; along columns integer sums are carried over
    from band to band, in the same arithmetic.
    """

    def __init__(self, size: Size, to_px: Size, resample: int) -> None:
        self._size, self._to_px, self._filter = size, to_px, Image.Resampling(resample)
        self._step = max(1, BAND_PX // max(size[0], to_px[0]))
        along: Callable[[Rgb], Rgb] = self._across
        down = _Down(size[1], to_px[1], resample).push if size[1] != to_px[1] else _as_is
        self._passes = (down, along) if down_first(size, to_px) else (along, down)

    def through(self, bands: Iterable[Rgb]) -> Iterator[Rgb]:
        """Bands [h, W, 3] in, rows of the result [n, w, 3] out, as soon as they are complete."""
        first, second = self._passes
        for band in bands:
            for piece in _pieces(band, self._step):
                rows = first(piece)
                if len(rows):
                    made = second(rows)
                    if len(made):
                        yield made

    def _across(self, rows: Rgb) -> Rgb:
        if self._size[0] == self._to_px[0]:
            return rows
        parts = [
            np.asarray(Image.fromarray(part).resize((self._to_px[0], len(part)), self._filter))
            for part in _pieces(rows, self._step)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class _Down:
    """Columns of `size` values resampled to `to`, from rows that come in order."""

    def __init__(self, size: int, to: int, resample: int) -> None:
        self._taps = make_taps(size, to, 0, to, resample)
        self._ends = np.minimum(self._taps.first + self._taps.weights.shape[1], size)
        self._row = self._done = 0
        self._sums = np.zeros((0, 0))

    def push(self, rows: Rgb) -> Rgb:
        """[n, W, 3] -> the outputs [m, W, 3] that no later row adds to; m may be 0."""
        below = self._row + len(rows)
        begun = int(np.searchsorted(self._taps.first, below))
        flat = rows.reshape(len(rows), -1).astype(np.float64)
        if missing := begun - self._done - len(self._sums):
            fresh = np.zeros((missing, flat.shape[1]))
            self._sums = np.concatenate([self._sums, fresh]) if len(self._sums) else fresh
        if len(self._sums):
            weights = self._taps.weights[self._done : begun]
            self._sums += _weights(self._taps.first[self._done : begun], weights, self._row, len(rows)) @ flat
        self._row = below
        complete = int(np.searchsorted(self._ends, below, side="right")) - self._done
        made = _rounded(self._sums[:complete])
        self._sums = self._sums[complete:].copy()
        self._done += complete
        return made.reshape(complete, *rows.shape[1:])


def _weights(first: NDArray[np.int64], taps: NDArray[np.int32], begin: int, count: int) -> NDArray[np.float64]:
    """Of values begin..begin + count in each output, [outputs, count]; products with 8 bits and their sums are exact in doubles."""
    place = first[:, None] - begin + np.arange(taps.shape[1])
    out, tap = np.nonzero((place >= 0) & (place < count))
    made = np.zeros((len(first), count))
    made[out, place[out, tap]] = taps[out, tap]
    return made


def _rounded(sums: NDArray[np.float64]) -> Rgb:
    """Sums of weighted values as 8 bits."""
    whole = (sums.astype(np.int64) + (1 << (PRECISION_BITS - 1))) >> PRECISION_BITS
    return whole.clip(0, 255).astype(np.uint8)


def _as_is(rows: Rgb) -> Rgb:
    return rows

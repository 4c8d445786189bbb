"""Resampling, padding and normalising that several families share, bit for bit as transformers' Pillow processors do it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlm_edge.core.geometry import Box, Size
from vlm_edge.errors import BadImage
from vlm_edge.vision.normalisation import Colour

Rgb = NDArray[np.uint8]
Floats = NDArray[np.float32]
WHOLE_PX = 1 << 24
"""Up to here a resized image is made whole even if only a part of it is wanted: Pillow is faster than NumPy."""
_PRECISION_BITS = 22  # of Pillow's 8-bit coefficients: 32, less 8 for the pixel and 2 for the sum


def require_rgb(pixels: Rgb) -> Size:
    """(width, height) of a uint8 [H, W, 3] array with at least one pixel; raises BadImage for any other."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise BadImage(
            f"an array of {pixels.dtype} {list(pixels.shape)} is no image", remedy="give uint8 [height, width, 3], RGB"
        )
    return pixels.shape[1], pixels.shape[0]


def resized(pixels: Rgb, to_px: Size, resample: int) -> Rgb:
    """The whole image [H, W, 3] at (width, height) `to_px`, by one of Pillow's filters."""
    if (pixels.shape[1], pixels.shape[0]) == to_px:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(to_px, Image.Resampling(resample)))


def resized_window(pixels: Rgb, to_px: Size, window: Box, resample: int) -> Rgb:
    """The part `window` of the image resized to `to_px`, without making the rest of it when that would be large.

    A strip of 1 x 2000 px with its shorter edge scaled to 336 px is 336 x 672 000 px, of which a crop keeps 336 x 336.
    Only an enlargement gets that large; Pillow works across before down on those, and so does the part that is made here.
    """
    height, width = pixels.shape[:2]
    if to_px[0] * to_px[1] <= max(WHOLE_PX, 2 * width * height):
        return resized(pixels, to_px, resample)[window[1] : window[3], window[0] : window[2]]
    across = _taps(width, to_px[0], window[0], window[2], resample)
    down = _taps(height, to_px[1], window[1], window[3], resample)
    return _resample(pixels, (0, 0), across, down, (0, 0, 0))


def squared(pixels: Rgb, side_px: int, colour: Colour, resample: int) -> Rgb:
    """Padded to a square around its centre, then resized to [side_px, side_px, 3].

    Of a long strip's square, only what the strip touches is resampled; the rest is `colour` in any case.
    """
    height, width = pixels.shape[:2]
    edge = max(height, width)
    left, top = (edge - width) // 2, (edge - height) // 2
    if edge * edge <= max(WHOLE_PX, 2 * width * height):
        return resized(padded(pixels, (0, 0, edge, edge), (left, top), colour), (side_px, side_px), resample)
    x0, x1 = _touched(left, left + width, edge, side_px, resample)
    y0, y1 = _touched(top, top + height, edge, side_px, resample)
    across, down = _taps(edge, side_px, x0, x1, resample), _taps(edge, side_px, y0, y1, resample)
    square = np.full((side_px, side_px, 3), colour, np.uint8)
    square[y0:y1, x0:x1] = _resample(pixels, (left, top), across, down, colour)
    return square


def padded(pixels: Rgb, box: Box, at: tuple[int, int], colour: Colour) -> Rgb:
    """`box` of an endless canvas of one colour on which the image lies with its corner `at` (x, y)."""
    x0, y0, x1, y1 = box
    canvas = np.full((y1 - y0, x1 - x0, 3), colour, np.uint8)
    left, top = max(x0, at[0]), max(y0, at[1])
    seen = pixels[top - at[1] : max(0, y1 - at[1]), left - at[0] : max(0, x1 - at[0])]
    canvas[top - y0 : top - y0 + seen.shape[0], left - x0 : left - x0 + seen.shape[1]] = seen
    return canvas


def source_box(part: Box, content: Box, image_px: Size) -> Box:
    """Where `part` of a canvas lies in the image that fills `content` of it: rounded outwards, clipped to the image."""
    spans = []
    for axis in (0, 1):
        begin, length = content[axis], content[axis + 2] - content[axis]
        ends = [min(max(part[axis + i] - begin, 0), length) * image_px[axis] for i in (0, 2)]
        spans.append((ends[0] // length, -(-ends[1] // length)))
    return spans[0][0], spans[1][0], max(spans[0]), max(spans[1])


def tile_boxes(canvas_px: Size, tile_px: int) -> tuple[Box, ...]:
    """Boxes of the square tiles of a canvas, row by row."""
    columns, rows = range(0, canvas_px[0], tile_px), range(0, canvas_px[1], tile_px)
    return tuple((x, y, x + tile_px, y + tile_px) for y in rows for x in columns)


def cut(pixels: Rgb, box: Box) -> Rgb:
    """A box of an image, as a view of its memory."""
    return pixels[box[1] : box[3], box[0] : box[2]]


@dataclass(frozen=True)
class _Taps:
    """Outputs of a one-dimensional resampling: the first value that each reads [n], and its weights [n, taps]."""

    first: NDArray[np.int64]
    weights: NDArray[np.int32]

    @property
    def ends(self) -> tuple[int, int]:
        """All values that are read lie between these."""
        return int(self.first.min()), int(self.first.max()) + self.weights.shape[1]


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    a, x = -0.5, np.abs(x)
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _hamming(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(x) < 1, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 0.0)


_Kernel = Callable[[NDArray[np.float64]], NDArray[np.float64]]
_FILTERS: dict[int, tuple[float, _Kernel]] = {
    Image.Resampling.LANCZOS: (3.0, _lanczos),
    Image.Resampling.BILINEAR: (1.0, lambda x: np.maximum(1 - np.abs(x), 0.0)),
    Image.Resampling.BICUBIC: (2.0, _bicubic),
    Image.Resampling.BOX: (0.5, lambda x: np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)),
    Image.Resampling.HAMMING: (1.0, _hamming),
}


def _taps(size: int, to: int, begin: int, end: int, resample: int) -> _Taps:
    """Outputs begin..end of a line of `size` values resampled to `to`, in Pillow's arithmetic."""
    support, kernel = _FILTERS[resample]
    scale = size / to
    stretch = max(scale, 1.0)
    support *= stretch
    centres = (np.arange(begin, end) + 0.5) * scale
    lows = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    highs = np.minimum((centres + support + 0.5).astype(np.int64), size)
    taps = np.arange(int((highs - lows).max()))
    weights = kernel((taps + lows[:, None] - centres[:, None] + 0.5) * (1.0 / stretch))
    weights[taps >= (highs - lows)[:, None]] = 0.0
    weights /= weights.sum(1, keepdims=True)
    whole = np.trunc(weights * (1 << _PRECISION_BITS) + np.copysign(0.5, weights)).astype(np.int32)
    return _Taps(lows, whole)


def _resample(pixels: Rgb, at: tuple[int, int], across: _Taps, down: _Taps, colour: Colour) -> Rgb:
    """Of a canvas of one colour with the image `at` (x, y): across, then down, with 8 bits in between.

    Pillow works in this order when it enlarges, and from square to square.
    """
    top, bottom = (min(max(end - at[1], 0), len(pixels)) for end in down.ends)
    return _along(_along(pixels[top:bottom], at[0], across, 1, colour), at[1] + top, down, 0, colour)


def _along(pixels: Rgb, at: int, taps: _Taps, axis: int, colour: Colour) -> Rgb:
    """Resample one axis, on which the image begins `at` and has `colour` before and behind it."""
    shape = (1, -1, 1) if axis else (-1, 1, 1)
    size = list(pixels.shape)
    size[axis] = len(taps.first)
    total = np.full(size, 1 << (_PRECISION_BITS - 1), np.int32)
    outside = taps.weights.sum(1, dtype=np.int32)
    for place, weights in _terms(taps, at, pixels.shape[axis]):
        if weights.any():
            total += np.take(pixels, place, axis, mode="clip") * weights.reshape(shape)
            outside -= weights
    total += outside.reshape(shape) * np.array(colour, np.int32)
    return (total >> _PRECISION_BITS).clip(0, 255).astype(np.uint8)


def _terms(taps: _Taps, at: int, size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
    """Values of the image that the outputs read, one for each output, with their weights; no weight outside the image.

    Tap by tap, or value by value where there are fewer values, as across a strip that stands in a large square.
    """
    outputs, count = taps.weights.shape
    for i in range(min(count, size)):
        place = taps.first + i - at if count <= size else np.full(outputs, i)
        tap = place + at - taps.first
        valid = (place >= 0) & (place < size) & (tap >= 0) & (tap < count)
        yield place, np.where(valid, taps.weights[np.arange(outputs), tap.clip(0, count - 1)], 0)


def _touched(begin: int, end: int, size: int, to: int, resample: int) -> tuple[int, int]:
    """Outputs that read any of the values begin..end, and perhaps a few more."""
    scale = size / to
    margin = _FILTERS[resample][0] * max(scale, 1.0) + 1
    return max(0, math.floor((begin - margin) / scale) - 1), min(to, math.ceil((end + margin) / scale) + 1)

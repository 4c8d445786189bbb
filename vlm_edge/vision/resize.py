"""Resampling, padding and normalising that several families share, bit for bit as transformers' Pillow processors do it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlm_edge.core.geometry import Box, ImageLayout, Size
from vlm_edge.errors import BadImage
from vlm_edge.vision.normalisation import Colour
from vlm_edge.vision.raster import Picture, crops, shrunk, shrunk_square, size_of
from vlm_edge.vision.taps import FILTERS, PRECISION_BITS, Taps, make_taps

Rgb = NDArray[np.uint8]
WHOLE_PX = 1 << 24
"""Up to here a resized image is made whole even if only a part of it is wanted: Pillow is faster than NumPy."""


def require_rgb(pixels: Picture) -> Size:
    """(width, height) of a raster, or a uint8 [H, W, 3] array with at least one pixel; raises BadImage for any other."""
    if isinstance(pixels, np.ndarray) and (
        pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size
    ):
        raise BadImage(
            f"an array of {pixels.dtype} {list(pixels.shape)} is no image", remedy="give uint8 [height, width, 3], RGB"
        )
    return size_of(pixels)


def resized(pixels: Picture, to_px: Size, resample: int) -> Rgb:
    """The whole image at (width, height) `to_px`, by one of Pillow's filters."""
    if not isinstance(pixels, np.ndarray):
        return shrunk(pixels, to_px, resample)
    if (pixels.shape[1], pixels.shape[0]) == to_px:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(to_px, Image.Resampling(resample)))


def resized_window(pixels: Picture, to_px: Size, window: Box, resample: int) -> Rgb:
    """The part `window` of the image resized to `to_px`, without making the rest of it when that would be large.

    A strip of 1 x 2000 px with its shorter edge scaled to 336 px is 336 x 672 000 px, of which a crop keeps 336 x 336.
    Only an enlargement gets that large; Pillow works across before down on those, and so does the part that is made here.
    """
    if not isinstance(pixels, np.ndarray):
        return shrunk(pixels, to_px, resample, window=window)
    height, width = pixels.shape[:2]
    if to_px[0] * to_px[1] <= max(WHOLE_PX, 2 * width * height):
        return resized(pixels, to_px, resample)[window[1] : window[3], window[0] : window[2]]
    return enlarged_windows(pixels, to_px, [window], resample)[0]


def enlarged_windows(pixels: Picture, to_px: Size, windows: Sequence[Box], resample: int) -> list[Rgb]:
    """Parts of an image enlarged to `to_px`, at least its own size, each made of the pixels that it depends on alone."""
    width, height = size_of(pixels)
    taps = [
        (make_taps(width, to_px[0], x0, x1, resample), make_taps(height, to_px[1], y0, y1, resample))
        for x0, y0, x1, y1 in windows
    ]
    boxes = [
        (across.ends[0], down.ends[0], min(across.ends[1], width), min(down.ends[1], height)) for across, down in taps
    ]
    parts = crops(pixels, boxes)
    return [
        _resample(part, box[:2], across, down, (0, 0, 0))
        for part, box, (across, down) in zip(parts, boxes, taps, strict=True)
    ]


def squared(pixels: Picture, side_px: int, colour: Colour, resample: int) -> Rgb:
    """Padded to a square around its centre, then resized to [side_px, side_px, 3].

    Of a long strip's square, only what the strip touches is resampled; the rest is `colour` in any case.
    """
    width, height = size_of(pixels)
    edge = max(height, width)
    left, top = (edge - width) // 2, (edge - height) // 2
    if not isinstance(pixels, np.ndarray):
        return shrunk_square(pixels, side_px, colour, resample)
    if edge * edge <= max(WHOLE_PX, 2 * width * height):
        return resized(padded(pixels, (0, 0, edge, edge), (left, top), colour), (side_px, side_px), resample)
    x0, x1 = _touched(left, left + width, edge, side_px, resample)
    y0, y1 = _touched(top, top + height, edge, side_px, resample)
    across, down = make_taps(edge, side_px, x0, x1, resample), make_taps(edge, side_px, y0, y1, resample)
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


def cell_boxes(layout: ImageLayout, tile_px: int) -> tuple[Box, ...]:
    """Boxes on the canvas of the tiles that a layout shows."""
    return tuple(
        (col * tile_px, row * tile_px, (col + 1) * tile_px, (row + 1) * tile_px) for row, col in layout.shown_cells
    )


def cut(pixels: Rgb, box: Box) -> Rgb:
    """A box of an image, as a view of its memory."""
    return pixels[box[1] : box[3], box[0] : box[2]]


def _resample(pixels: Rgb, at: tuple[int, int], across: Taps, down: Taps, colour: Colour) -> Rgb:
    """Of a canvas of one colour with the image `at` (x, y): across, then down, with 8 bits in between.

    Pillow works in this order when it enlarges, and from square to square.
    """
    top, bottom = (min(max(end - at[1], 0), len(pixels)) for end in down.ends)
    return _along(_along(pixels[top:bottom], at[0], across, 1, colour), at[1] + top, down, 0, colour)


def _along(pixels: Rgb, at: int, taps: Taps, axis: int, colour: Colour) -> Rgb:
    """Resample one axis, on which the image begins `at` and has `colour` before and behind it."""
    shape = (1, -1, 1) if axis else (-1, 1, 1)
    size = list(pixels.shape)
    size[axis] = len(taps.first)
    total = np.full(size, 1 << (PRECISION_BITS - 1), np.int32)
    outside = taps.weights.sum(1, dtype=np.int32)
    for place, weights in _terms(taps, at, pixels.shape[axis]):
        if weights.any():
            total += np.take(pixels, place, axis, mode="clip") * weights.reshape(shape)
            outside -= weights
    total += outside.reshape(shape) * np.array(colour, np.int32)
    return (total >> PRECISION_BITS).clip(0, 255).astype(np.uint8)


def _terms(taps: Taps, at: int, size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
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
    margin = FILTERS[resample][0] * max(scale, 1.0) + 1
    return max(0, math.floor((begin - margin) / scale) - 1), min(to, math.ceil((end + margin) / scale) + 1)

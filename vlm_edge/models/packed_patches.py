"""Qwen2-VL and Qwen2.5-VL: patches in one row, and the indices that tell the tower where each belongs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.geometry import ImageLayout
from vlm_edge.core.image_inputs import ImageInputs
from vlm_edge.models.packed_settings import PackedSettings
from vlm_edge.vision.resize import Floats, Rgb, require_rgb, resized

GridThw = tuple[int, int, int]


def prepare(image: Rgb, settings: PackedSettings) -> ImageInputs:
    """uint8 [H, W, 3] -> pixel_values float32 [T, C * t * p * p] and the tower's indices for this image alone.

    Raises BadImage for any other array, BadInput for proportions beyond 200:1.
    """
    image_px = require_rgb(image)
    layout = settings.geometry.layout(image_px)
    arrays = {
        "pixel_values": _patches(resized(image, layout.canvas_px, settings.resample), settings),
        **_indices([layout], settings),
    }
    return ImageInputs(arrays, ((0, 0, *image_px),), layout)


def pack(images: Sequence[ImageInputs], settings: PackedSettings) -> dict[str, NDArray[Any]]:
    """The tower's inputs for several images, of any sizes, in one call."""
    pixels = np.concatenate([image.arrays["pixel_values"] for image in images])
    return {"pixel_values": pixels, **_indices([image.layout for image in images], settings)}


def _indices(layouts: Sequence[ImageLayout], settings: PackedSettings) -> dict[str, NDArray[Any]]:
    grids = [layout.grid_thw for layout in layouts if layout.grid_thw is not None]
    return tower_indices(grids, merge=settings.geometry.merge, window=settings.window_tokens)


def _patches(pixels: Rgb, settings: PackedSettings) -> Floats:
    """[H, W, 3] -> [T, 3 * t * p * p], the patches of a merged token together, a still image's frames all alike."""
    side, merge, frames = settings.geometry.patch_px, settings.geometry.merge, settings.frames
    rows, cols = pixels.shape[0] // (side * merge), pixels.shape[1] // (side * merge)
    blocks = pixels.reshape(rows, merge, side, cols, merge, side, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    patches = np.empty((rows, cols, merge, merge, 3, frames, side, side), np.float32)
    for channel, values in enumerate(settings.pixels.table()):
        patches[:, :, :, :, channel] = values[blocks[:, :, :, :, channel]][:, :, :, :, None]
    return patches.reshape(rows * cols * merge * merge, -1)


def tower_indices(grids: Sequence[GridThw], *, merge: int, window: int | None) -> dict[str, NDArray[Any]]:
    """What the tower must be told about patches of several images in one row; grids are (frames, rows, cols) of patches.

    position_ids int64 [T, 2]: row and column of each patch in its image, patches of a merged token together.
    cu_seqlens int32 [frames + 1]: where each frame's patches begin and end: attention stays within a frame.
    With `window`, the side of a window in merged tokens, also:
    window_index int64 [T / merge^2]: merged tokens in the order of their windows, which the tower takes them in.
    cu_window_seqlens int32 [windows + 1]: where each window's patches begin and end. Windows at the right and lower edge
    hold what is left of the image.
    """
    frames = [rows * cols for times, rows, cols in grids for _ in range(times)]
    indices: dict[str, NDArray[Any]] = {
        "position_ids": np.concatenate(
            [np.tile(_positions(rows, cols, merge), (times, 1)) for times, rows, cols in grids]
        ),
        "cu_seqlens": np.cumsum([0, *frames], dtype=np.int32),
    }
    if window is None:
        return indices
    order: list[NDArray[np.int64]] = []
    lengths = [0]
    seen = 0
    for times, rows, cols in grids:
        tokens, sizes = _windows(rows // merge, cols // merge, window)
        for _ in range(times):
            order.append(tokens + seen)
            lengths += [int(size) * merge * merge for size in sizes]
            seen += len(tokens)
    return {
        **indices,
        "window_index": np.concatenate(order),
        "cu_window_seqlens": np.cumsum(lengths, dtype=np.int32),
    }


def _positions(rows: int, cols: int, merge: int) -> NDArray[np.int64]:
    """(row, column) of each patch of a frame [rows * cols, 2], block by block of merge x merge."""
    places = np.indices((rows, cols)).reshape(2, rows // merge, merge, cols // merge, merge)
    return np.ascontiguousarray(places.transpose(1, 3, 2, 4, 0).reshape(-1, 2), np.int64)


def _windows(rows: int, cols: int, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of a frame window by window, each row by row, and the tokens of each window."""
    row, col = np.indices((rows, cols)).reshape(2, -1)
    number = row // window * -(-cols // window) + col // window
    return np.argsort(number, kind="stable"), np.bincount(number)

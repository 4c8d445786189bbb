"""Qwen2-VL and Qwen2.5-VL: patches in one row, and the indices that tell the tower where each belongs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.contracts import Floats
from vlm_edge.core.geometry import ImageLayout
from vlm_edge.core.image_inputs import ImageInputs
from vlm_edge.models.packed_settings import PackedSettings
from vlm_edge.vision.raster import Picture
from vlm_edge.vision.resize import Rgb, require_rgb, resized, source_box

GridThw = tuple[int, int, int]


def prepare(image: Picture, settings: PackedSettings, layout: ImageLayout | None = None) -> ImageInputs:
    """uint8 [H, W, 3] -> pixel_values float32 [T, C * t * p * p] and the tower's indices for this image alone.

    layout: another one than the family's own, by settings.geometry.subset: an overview, and patches of the chosen cells. The
    others are left out before the tower; those that stay keep their places, in the tower and in the prompt.
    Raises BadImage for any other array, BadInput for proportions beyond 200:1.
    """
    image_px = require_rgb(image)
    layout = layout or settings.geometry.layout(image_px)
    parts = layout.parts or (layout,)
    patches = [
        _patches(resized(image, part.canvas_px, settings.resample), settings, chosen_tokens(part)) for part in parts
    ]
    side = tuple(count * settings.geometry.patch_px * settings.geometry.merge for count in settings.geometry.grid)
    cells = [(c * side[1], r * side[0], (c + 1) * side[1], (r + 1) * side[0]) for r, c in layout.cells or ()]
    right, low = layout.canvas_px
    shown = [source_box((x0, y0, min(x1, right), min(y1, low)), layout.content, image_px) for x0, y0, x1, y1 in cells]
    arrays = {"pixel_values": np.concatenate(patches), **_indices(parts, settings)}
    return ImageInputs(arrays, ((0, 0, *image_px), *shown), layout)


def chosen_tokens(layout: ImageLayout) -> NDArray[np.int64] | None:
    """Places in token_grid, row by row, of the merged tokens that lie in the chosen cells; None where all tokens are kept."""
    if layout.cells is None:
        return None
    chosen = np.zeros((layout.rows, layout.cols), bool)
    chosen[tuple(np.array(layout.cells).T)] = True
    row, col = np.indices(layout.token_grid).reshape(2, -1)
    return np.flatnonzero(chosen[row // layout.cell_tokens[0], col // layout.cell_tokens[1]])


def pack(images: Sequence[ImageInputs], settings: PackedSettings) -> dict[str, NDArray[Any]]:
    """The tower's inputs for several images, of any sizes, in one call."""
    pixels = np.concatenate([image.arrays["pixel_values"] for image in images])
    return {"pixel_values": pixels, **_indices([image.layout for image in images], settings)}


def _indices(layouts: Sequence[ImageLayout], settings: PackedSettings) -> dict[str, NDArray[Any]]:
    grids = [layout.grid_thw for layout in layouts if layout.grid_thw is not None]
    kept = [chosen_tokens(layout) for layout in layouts]
    return tower_indices(grids, merge=settings.geometry.merge, window=settings.window_tokens, kept=kept)


def _patches(pixels: Rgb, settings: PackedSettings, chosen: NDArray[np.int64] | None) -> Floats:
    """[H, W, 3] -> [T, 3 * t * p * p], the patches of a merged token together, a still image's frames all alike.

    chosen: the merged tokens that are wanted, row by row.
    """
    side, merge, frames = settings.geometry.patch_px, settings.geometry.merge, settings.frames
    rows, cols = pixels.shape[0] // (side * merge), pixels.shape[1] // (side * merge)
    blocks = pixels.reshape(rows, merge, side, cols, merge, side, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    if chosen is not None:
        blocks = blocks[np.divmod(chosen, cols)]
    patches = np.empty((*blocks.shape[:-2], frames, side, side), np.float32)
    for channel, values in enumerate(settings.pixels.table()):
        patches[..., channel, :, :, :] = values[blocks[..., channel, :, :]][..., None, :, :]
    return patches.reshape(-1, 3 * frames * side * side)


def tower_indices(
    grids: Sequence[GridThw], *, merge: int, window: int | None, kept: Sequence[NDArray[np.int64] | None] = ()
) -> dict[str, NDArray[Any]]:
    """What the tower must be told about patches of several images in one row; grids are (frames, rows, cols) of patches.

    position_ids int64 [T, 2]: row and column of each patch in its image, patches of a merged token together.
    cu_seqlens int32 [frames + 1]: where each frame's patches begin and end: attention stays within a frame.
    With `window`, the side of a window in merged tokens, also:
    window_index int64 [T / merge^2]: merged tokens in the order of their windows, which the tower takes them in.
    cu_window_seqlens int32 [windows + 1]: where each window's patches begin and end. Windows at the right and lower edge
    hold what is left of the image.
    kept: for each image, the merged tokens of a frame that it has, row by row; None or nothing: all. Windows without any go.
    """
    kept = kept or (None,) * len(grids)
    unit = merge * merge
    positions, frames, order, sizes, seen = [], [0], [], [0], 0
    for (times, rows, cols), tokens in zip(grids, kept, strict=True):
        places = _positions(rows, cols, merge).reshape(-1, unit, 2)
        numbers = None if window is None else _window_numbers(rows // merge, cols // merge, window)
        if tokens is not None:
            places, numbers = places[tokens], None if numbers is None else numbers[tokens]
        for _ in range(times):
            positions.append(places.reshape(-1, 2))
            frames.append(len(places) * unit)
            if numbers is not None:
                order.append(np.argsort(numbers, kind="stable") + seen)
                held = np.bincount(numbers)
                sizes += [int(size) * unit for size in held[held > 0]]
            seen += len(places)
    indices: dict[str, NDArray[Any]] = {
        "position_ids": np.concatenate(positions),
        "cu_seqlens": np.cumsum(frames, dtype=np.int32),
    }
    if window is None:
        return indices
    return {**indices, "window_index": np.concatenate(order), "cu_window_seqlens": np.cumsum(sizes, dtype=np.int32)}


def _positions(rows: int, cols: int, merge: int) -> NDArray[np.int64]:
    """(row, column) of each patch of a frame [rows * cols, 2], block by block of merge x merge."""
    places = np.indices((rows, cols)).reshape(2, rows // merge, merge, cols // merge, merge)
    return np.ascontiguousarray(places.transpose(1, 3, 2, 4, 0).reshape(-1, 2), np.int64)


def _window_numbers(rows: int, cols: int, window: int) -> NDArray[np.int64]:
    """The window of each merged token of a frame, row by row."""
    row, col = np.indices((rows, cols)).reshape(2, -1)
    return np.asarray(row // window * -(-cols // window) + col // window, np.int64)

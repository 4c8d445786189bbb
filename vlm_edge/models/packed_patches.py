"""Qwen2-VL and Qwen2.5-VL: patches in one row, and the indices that tell the tower where each belongs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.geometry import ImageLayout, PatchGeometry
from vlm_edge.core.image_inputs import ImageInputs
from vlm_edge.models.fields import Fields
from vlm_edge.models.preprocessor import (
    BICUBIC,
    CLIP_MEAN,
    CLIP_STD,
    ViewSettings,
    normalisation,
    preprocessor_fields,
    resample_field,
    size_edges,
)
from vlm_edge.vision.resize import Floats, Rgb, require_rgb, resized

GridThw = tuple[int, int, int]
TILE_PX = 448
"""Side of the tiles when an image is shown as a global view and tiles; about 16 x 16 tokens."""
_MOST_PIXELS = 1 << 28


@dataclass(frozen=True)
class PackedSettings(ViewSettings[PatchGeometry]):
    """frames: how often a still image is repeated in time.  window_px: side of an attention window; None: no windows."""

    frames: int
    window_px: int | None = None

    @property
    def window_tokens(self) -> int | None:
        """Side of an attention window in merged tokens."""
        return None if self.window_px is None else self.window_px // (self.geometry.patch_px * self.geometry.merge)


def packed_settings(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any], *, types: Sequence[str], window_px: int | None = None
) -> PackedSettings:
    """Settings of a family whose processor is one of `types`; window_px: its windows where config.json names none.

    Raises BadInput with the field's name, also where the two files disagree on how patches are cut.
    """
    fields = preprocessor_fields(preprocessor, types=types)
    vision = Fields(config).part("vision_config", optional=True)
    patch_px, merge = (
        _agreed(vision, fields, "patch_size", 14),
        _agreed(vision, fields, "merge_size", 2, "spatial_merge_size"),
    )
    least, most = _pixel_limits(fields)
    step = patch_px * merge
    if most < step * step:
        raise fields.error("max_pixels", f"of {most} is less than one token of {step} x {step} px")
    if window_px is not None:
        window_px = vision.count("window_size", window_px)
        if window_px % step:
            raise vision.error("window_size", f"of {window_px} px is no multiple of a token of {step} px")
    side = max(1, TILE_PX // step)
    return PackedSettings(
        geometry=PatchGeometry(
            view_px=side * step, grid=(side, side), patch_px=patch_px, merge=merge, min_pixels=least, max_pixels=most
        ),
        resample=resample_field(fields, BICUBIC),
        pixels=normalisation(fields, CLIP_MEAN, CLIP_STD),
        frames=_agreed(vision, fields, "temporal_patch_size", 2),
        window_px=window_px,
    )


def _agreed(vision: Fields, fields: Fields, key: str, default: int, of_tower: str | None = None) -> int:
    tower = vision.count(of_tower or key, default)
    if fields.count(key, default) != tower:
        raise fields.error(key, f"of {fields.count(key, default)} differs from config.json's, {tower}")
    return tower


def _pixel_limits(fields: Fields) -> tuple[int, int]:
    """(min, max) pixels: named as such in older files, as the square of an edge in newer ones."""
    names = ("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")
    defaults = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
    size = size_edges(fields, "size", defaults, number_means=())
    least, most = (fields.count(old, size.get(new, size.get(old)), maximum=_MOST_PIXELS) for old, new in names)
    if most < least:
        raise fields.error("max_pixels", f"of {most} is less than min_pixels, {least}")
    return least, most


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

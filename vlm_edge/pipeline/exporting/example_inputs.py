"""The images on which a vision graph is traced and compared, as a family's preprocessing makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.image_inputs import ImageInputs
from vlm_edge.core.resources import resource_dir
from vlm_edge.errors import DamagedInstallation
from vlm_edge.vision.resize import Rgb, resized
from vlm_edge.vision.sources import load_image

Arrays = Mapping[str, NDArray[Any]]
IMAGES = 8
LONGEST_PX = 768
"""Towers for any size pay for a page with the square of its patches; this is enough to have all of them work."""
MAX_VIEWS = 3
"""Of one image: what a call holds grows with its views, and no more is shown by a fourth."""
BICUBIC = 3
NOISE_PX = ((448, 448), (320, 500), (610, 240))
"""(height, width): square, upright, wide."""


def example_images() -> list[Rgb]:
    """The shipped pages, none longer than LONGEST_PX, and noise: IMAGES images, uint8 [H, W, 3], the same on every call."""
    folder = resource_dir("calibration") / "pages"
    paths = sorted(folder.glob("*.png"))
    if len(paths) != IMAGES - len(NOISE_PX):
        raise DamagedInstallation(
            f"{folder} has {len(paths)} pages, not {IMAGES - len(NOISE_PX)}", remedy="install vlm-edge again"
        )
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (*size, 3), np.uint8) for size in NOISE_PX]
    return [*(_shrunk(load_image(path).pixels) for path in paths), *noise]


def _shrunk(pixels: Rgb) -> Rgb:
    height, width = pixels.shape[:2]
    factor = min(1.0, LONGEST_PX / max(height, width))
    return resized(pixels, (max(1, round(width * factor)), max(1, round(height * factor))), BICUBIC)


def tower_inputs(family_images: Any, settings: Any, names: Sequence[str]) -> list[dict[str, NDArray[Any]]]:
    """The encoder's arrays for every example image, at most MAX_VIEWS views each; the first two images share a call.

    family_images: a family's images.py.  settings: what its settings_from gave.  names: the arrays that the encoder reads.
    A shared call shows the exporter that the number of views, or of images in a row of patches, may vary.
    """
    prepare: Callable[[Rgb, Any], ImageInputs] = family_images.prepare
    prepared = [prepare(image, settings) for image in example_images()]
    pack = getattr(family_images, "pack", None)
    if pack is not None:
        return [_chosen(pack(group, settings), names) for group in (prepared[:2], *([one] for one in prepared[2:]))]
    views = [{name: _some(one.arrays[name]) for name in names} for one in prepared]
    # one view of each, since tracing holds more of a call than comparing does
    return [{name: _stacked(views[0][name][:1], views[1][name][:1]) for name in names}, *views[2:]]


def _chosen(arrays: Arrays, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    return {name: arrays[name] for name in names}


def _some(views: NDArray[Any]) -> NDArray[Any]:
    """Views at equal distances, the first and the last among them, since one of the two is the global view."""
    return views[np.unique(np.linspace(0, len(views) - 1, MAX_VIEWS).round().astype(np.int64))]


def _stacked(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """Views of two images, [V, ...]; the smaller ones padded with 0 at the right and below, as within an image."""
    shape = np.maximum(first.shape[1:], second.shape[1:])
    padded = [
        np.pad(part, [(0, 0), *((0, int(to - size)) for size, to in zip(part.shape[1:], shape, strict=True))])
        for part in (first, second)
    ]
    return np.concatenate(padded)

"""Pictures of all kinds, and what transformers' Pillow processors make of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from tests.image_bytes import noise
from vlm_edge.core.image_inputs import ImageInputs


def photo(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth colour with a little grain: uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = rng.uniform(1, 9, (3, 3))
    shades = [np.sin(a * x + b * y + c) + 0.3 * np.sin(5 * b * x - 4 * a * y) for a, b, c in waves]
    grain = rng.normal(0, 4, (height, width, 3))
    return (128 + 80 * np.stack(shades, -1) + grain).clip(0, 255).astype(np.uint8)


def grey(width: int, height: int) -> np.ndarray:
    """A grey picture as RGB, which is how it comes out of vision.sources."""
    return np.repeat(photo(width, height, seed=7)[..., :1], 3, axis=2)


PICTURES: dict[str, np.ndarray] = {
    "photo": photo(640, 427),
    "portrait": photo(301, 500, seed=1),
    "large": photo(1800, 1201, seed=2),
    "noise": noise(211, 333),
    "grey": grey(250, 250),
    "tall strip": photo(1, 2000, seed=3),
    "wide strip": photo(3000, 7, seed=4),
    "dot": noise(1, 1),
    "tiny": noise(2, 3, seed=5),
}


def reference(processor: Any, *images: np.ndarray) -> dict[str, np.ndarray]:
    """The processor's arrays for these images."""
    out = processor([Image.fromarray(image) for image in images], return_tensors="np")
    return {name: np.asarray(value) for name, value in out.items()}


def check_boxes(inputs: ImageInputs, image: np.ndarray) -> None:
    """One box for each view, inside the image, and all of the image in some box."""
    height, width = image.shape[:2]
    seen = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in inputs.boxes:
        assert 0 <= x0 <= x1 <= width
        assert 0 <= y0 <= y1 <= height
        seen[y0:y1, x0:x1] = True
    assert len(inputs.boxes) == inputs.layout.views
    assert seen.all()

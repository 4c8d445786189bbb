"""Strong textures around what a page says: grounds that fool whoever looks for edges.

The pages of pages.py lie on paper. A label on wood, a gauge on gravel or a stamp on cloth lies on something with more edges than
its letters have. `on_texture` paints such a ground over everything but calm islands around lines and shapes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from .pages import Page

Field = Callable[[np.random.Generator, int, int], np.ndarray]
"""(random state, height, width) -> float32 [height, width] in about -1..1."""
ISLAND_PX = (6, 20)
"""How far around a line or a shape its ground stays calm."""


def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return y, x


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.uniform(-1, 1, (height, width)).astype(np.float32)


def _gravel(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    step = int(rng.integers(3, 9))
    coarse = rng.uniform(-1, 1, (height // step + 2, width // step + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST))


def _hatching(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    y, x = _grid(height, width)
    angle, period = rng.uniform(0, np.pi), rng.uniform(3, 12)
    return np.sign(np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)).astype(np.float32)


def _weave(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    y, x = _grid(height, width)
    a, b = rng.uniform(3, 11, 2)
    return (np.sin(x * 2 * np.pi / a) * np.sin(y * 2 * np.pi / b)).astype(np.float32)


def _halftone(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    y, x = _grid(height, width)
    pitch = rng.uniform(4, 11)
    radius = pitch * rng.uniform(0.2, 0.42)
    centre = np.hypot(x % pitch - pitch / 2, y % pitch - pitch / 2)
    return np.where(centre < radius, -1, 1).astype(np.float32)


def _bricks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    y, x = _grid(height, width)
    rise, run = rng.uniform(8, 18), rng.uniform(16, 40)
    row = np.floor(y / rise)
    joint = (y % rise < 2) | ((x + (row % 2) * run / 2) % run < 2)
    grain = rng.uniform(-0.25, 0.25, (height, width))
    return np.where(joint, -1, 0.6 + grain).astype(np.float32)


def _wood(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    y, x = _grid(height, width)
    bend = 12 * np.sin(x / rng.uniform(40, 120) + rng.uniform(0, 6))
    return np.sin((y + bend) * 2 * np.pi / rng.uniform(3, 9)).astype(np.float32) * rng.uniform(0.6, 1, (1, width))


TAUGHT: tuple[Field, ...] = (_noise, _gravel, _hatching, _weave)
HELD_OUT: tuple[Field, ...] = (_halftone, _bricks, _wood)
"""Textures that saliency.py never trains on: what it does about them it does not know by heart."""


def on_texture(rng: np.random.Generator, page: Page, fields: tuple[Field, ...], *, share: float = 1.0) -> np.ndarray:
    """The page's image, uint8 [H, W, 3], with one texture on all of it (or on a share) but islands around lines and shapes."""
    height, width = page.height, page.width
    field = fields[int(rng.integers(len(fields)))](rng, height, width)
    base, contrast = rng.integers(70, 190, 3), rng.uniform(35, 110)
    ground = np.clip(base + contrast * field[..., None], 0, 255).astype(np.uint8)
    calm = np.zeros((height, width), bool)
    for box in (*(line.box for line in page.lines), *(shape.box for shape in page.shapes)):
        margin = int(rng.integers(*ISLAND_PX))
        x0, y0 = max(0, int(box[0]) - margin), max(0, int(box[1]) - margin)
        calm[y0 : int(box[3]) + margin, x0 : int(box[2]) + margin] = True
    if share < 1:
        patch = 96
        kept = rng.random((-(-height // patch), -(-width // patch))) >= share
        calm |= kept.repeat(patch, 0).repeat(patch, 1)[:height, :width]
    return np.where(calm[..., None], page.image, ground)

"""Features that look like a tower's, and cosines in plain Python to hold reducers against."""

from __future__ import annotations

import math

import numpy as np


def patchy(seed: int, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Features float32 [V, R * C, D] of a few materials in patches, with noise, some zero vectors and odd lengths."""
    views, rows, cols, channels = shape
    rng = np.random.default_rng(seed)
    materials = rng.standard_normal((3, channels))
    which = rng.integers(0, 3, (views, -(-rows // 2), -(-cols // 2))).repeat(2, 1).repeat(2, 2)[:, :rows, :cols]
    noise = rng.choice([0.05, 0.3, 1.0])
    values = materials[which] + noise * rng.standard_normal((views, rows, cols, channels))
    values *= rng.uniform(0.2, 5, (views, rows, cols, 1)) * (rng.random((views, rows, cols, 1)) > 0.05)
    return values.reshape(views, rows * cols, channels).astype(np.float32)


def cosine(a: list[float], b: list[float]) -> float:
    lengths = math.sqrt(math.fsum(x * x for x in a) * math.fsum(x * x for x in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


class Decisions:
    """The largest of several values, and by how little the closest such decision was made.

    Reducers sum float32 and slow loops float64: decisions closer than UNDECIDED are not compared.
    """

    UNDECIDED = 1e-5

    def __init__(self) -> None:
        self.margin = math.inf

    def largest(self, values: dict[int, float]) -> int:
        best = max(values, key=lambda index: (values[index], -index))
        others = [value for index, value in values.items() if index != best]
        if others:
            self.margin = min(self.margin, values[best] - max(others))
        return best

    @property
    def clear(self) -> bool:
        return self.margin > self.UNDECIDED

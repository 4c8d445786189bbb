"""One-dimensional resampling in Pillow's arithmetic: which values an output reads, and by what integer weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from vlm_edge.core.geometry import Size

PRECISION_BITS = 22
"""Of Pillow's 8-bit coefficients: 32, less 8 for the pixel and 2 for the sum."""
_MAY_GO_DOWN_FIRST = int(PIL.__version__.partition(".")[0]) >= 13


def down_first(size: Size, to: Size) -> bool:
    """Whether Pillow resamples columns before rows: from version 13 on, where height shrinks much more than width.

    The order matters because there are 8 bits in between. Found by comparison with Pillow 13.0; see also its pull request 9549.
    """
    return _MAY_GO_DOWN_FIRST and to[1] < size[1] and size[1] - to[1] > 2 * (size[0] - to[0])


@dataclass(frozen=True)
class Taps:
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
    low, high = float(np.float32(0.54)), float(np.float32(0.46))  # Pillow's constants are of single precision
    return np.where(np.abs(x) < 1, np.sinc(x) * (low + high * np.cos(np.pi * x)), 0.0)


_Kernel = Callable[[NDArray[np.float64]], NDArray[np.float64]]
FILTERS: dict[int, tuple[float, _Kernel]] = {
    Image.Resampling.LANCZOS: (3.0, _lanczos),
    Image.Resampling.BILINEAR: (1.0, lambda x: np.maximum(1 - np.abs(x), 0.0)),
    Image.Resampling.BICUBIC: (2.0, _bicubic),
    Image.Resampling.BOX: (0.5, lambda x: np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)),
    Image.Resampling.HAMMING: (1.0, _hamming),
}


def make_taps(size: int, to: int, begin: int, end: int, resample: int) -> Taps:
    """Outputs begin..end of a line of `size` values resampled to `to`, in Pillow's arithmetic."""
    support, kernel = FILTERS[resample]
    scale = size / to
    stretch = max(scale, 1.0)
    support *= stretch
    centres = (np.arange(begin, end) + 0.5) * scale
    lows = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    highs = np.minimum((centres + support + 0.5).astype(np.int64), size)
    taps = np.arange(int((highs - lows).max()))
    weights = kernel((taps + lows[:, None] - centres[:, None] + 0.5) * (1.0 / stretch))
    weights[taps >= (highs - lows)[:, None]] = 0.0
    weights *= 1.0 / weights.cumsum(1)[:, -1:]  # summed one by one, as Pillow does: np.sum goes by pairs
    whole = np.trunc(weights * (1 << PRECISION_BITS) + np.copysign(0.5, weights)).astype(np.int32)
    return Taps(lows, whole)

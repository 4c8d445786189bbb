"""The scale of pixels, and the filters' names, as settings hold them: a plan reads those and never loads NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm_edge.core.contracts import Floats
    from vlm_edge.vision.resize import Rgb

Colour = tuple[int, int, int]
FILTERS = frozenset({1, 2, 3, 4, 5})
"""Pillow's numbers of the filters that preprocessing may ask for: Lanczos, bilinear, bicubic, box and Hamming."""


@dataclass(frozen=True)
class Normalisation:
    """uint8 -> float32: times `scale`, less `mean`, over `std`; each channel of RGB has its own."""

    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def table(self) -> Floats:
        """What each of 256 pixel values becomes: float32 [3, 256]. Rounded to float32 after scaling, as transformers does."""
        import numpy as np

        scaled = (np.arange(256, dtype=np.float64) * self.scale).astype(np.float32)
        mean, std = (np.array(values, np.float32)[:, None] for values in (self.mean, self.std))
        return np.asarray((scaled - mean) / std, np.float32)

    def apply(self, view: Rgb, out: Floats | None = None) -> Floats:
        """[H, W, 3] -> channels first [3, H, W], into `out` where it is given."""
        import numpy as np

        out = np.empty((3, *view.shape[:2]), np.float32) if out is None else out
        for channel, values in enumerate(self.table()):
            np.take(values, view[..., channel], out=out[channel], mode="clip")  # other modes buffer `out`
        return out

    def stack(self, views: list[Rgb]) -> Floats:
        """Views of one size -> [V, 3, H, W]."""
        import numpy as np

        stacked = np.empty((len(views), 3, *views[0].shape[:2]), np.float32)
        for view, out in zip(views, stacked, strict=True):
            self.apply(view, out)
        return stacked

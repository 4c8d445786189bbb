"""Means of figures that belong to questions, with bootstrap intervals: whole pages are drawn, since their questions go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES, SEED = 4000, 0
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% percentile interval."""

    mean: float
    low: float
    high: float


class Resamples:
    """RESAMPLES draws of pages with replacement, the same for every figure, so that differences are paired."""

    def __init__(self, pages: Sequence[int]) -> None:
        """pages: of each question."""
        names, self._of = np.unique(np.asarray(pages), return_inverse=True)
        random = np.random.default_rng(SEED)
        self._weights = random.multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES).astype(float)

    def means(self, values: Values, chosen: NDArray[np.bool_] | None = None) -> Values:
        """Mean over the (chosen) questions of each draw [RESAMPLES]; NaN where a draw holds none of them."""
        use = np.ones(len(values)) if chosen is None else chosen.astype(float)
        pages = self._weights.shape[1]
        total = self._weights @ np.bincount(self._of, values * use, pages)
        count = self._weights @ np.bincount(self._of, use, pages)
        with np.errstate(invalid="ignore"):
            found: Values = total / count
        return found

    def estimate(self, values: Values, chosen: NDArray[np.bool_] | None = None) -> Estimate:
        """The mean of values, or of differences of paired values."""
        mean = float(values.mean() if chosen is None else values[chosen].mean())
        return Estimate(mean, *_interval(self.means(values, chosen)))

    def ratio(self, above: Values, below: Values) -> Estimate:
        """The ratio of two means over the same questions; draws in which the lower one is 0 are left out of the interval."""
        draws = self.means(below)
        ratios = np.divide(self.means(above), draws, out=np.full(RESAMPLES, np.nan), where=draws != 0)
        return Estimate(float(above.mean() / below.mean()), *_interval(ratios))


def _interval(draws: Values) -> tuple[float, float]:
    low, high = np.nanpercentile(draws, (2.5, 97.5))
    return float(low), float(high)

"""By how much one run is right more often than another over the same rows, with an interval. No I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.errors import BadInput
from vlm_edge.pipeline.evaluating.metrics import RowOutcome, wilson

RESAMPLES = 2000
_LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """Accuracy of run b less that of run a, in shares, with a 95% interval; only_a, only_b: rows that one alone has right."""

    n: int
    only_a: int
    only_b: int
    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Shares with four digits."""
        return {
            "n": self.n,
            "only_a": self.only_a,
            "only_b": self.only_b,
            "mean": round(self.mean, 4),
            "interval_95": [round(self.low, 4), round(self.high, 4)],
        }


def difference(rows_a: Sequence[RowOutcome], rows_b: Sequence[RowOutcome]) -> Difference:
    """Pair two runs row by row; rows about one image stand or fall together.

    Raises BadInput when the runs are not over the same rows in one order.
    """
    if [row.row for row in rows_a] != [row.row for row in rows_b]:
        raise BadInput("the two runs are not over the same rows", remedy="evaluate the same data file with both")
    right_a, right_b = (np.array([row.right for row in rows], bool) for rows in (rows_a, rows_b))
    clusters = np.unique([row.image for row in rows_a], return_inverse=True)[1] if rows_a else np.zeros(0, np.intp)
    return paired_difference(right_a, right_b, clusters)


def paired_difference(right_a: NDArray[np.bool_], right_b: NDArray[np.bool_], clusters: NDArray[np.intp]) -> Difference:
    """The same of [N] rights and wrongs each; clusters: as `bootstrap` has them.

    The interval holds two others: Newcombe's, which does not collapse where no row differs, and one that draws clusters anew.
    """
    both, only_a = int((right_a & right_b).sum()), int((right_a & ~right_b).sum())
    only_b, n = int((~right_a & right_b).sum()), len(right_a)
    low, high = newcombe(both, only_a, only_b, n - both - only_a - only_b)
    by_cluster = bootstrap(right_b.astype(np.float64) - right_a, clusters)
    mean = (only_b - only_a) / n if n else 0.0
    return Difference(n, only_a, only_b, mean, min(low, by_cluster[0]), max(high, by_cluster[1]))


def newcombe(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """95% interval of the difference b - a of two paired shares; (-1, 1) without data.

    Source: Newcombe 1998, Statistics in Medicine 17, 2635-2650, method 10: Wilson's intervals of both shares, joined by
    their correlation, which is corrected for continuity.
    """
    n = both + only_a + only_b + neither
    if n == 0:
        return -1.0, 1.0
    share_a, share_b = (both + only_a) / n, (both + only_b) / n
    low_a, high_a = wilson(both + only_a, n)
    low_b, high_b = wilson(both + only_b, n)
    phi = _correlation(both, only_a, only_b, neither)
    below, above = (share_b - low_b, high_a - share_a), (high_b - share_b, share_a - low_a)
    difference = share_b - share_a
    return difference - _joined(*below, phi), difference + _joined(*above, phi)


def _joined(one: float, other: float, phi: float) -> float:
    # rounding may take the sum a hair below 0
    return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))


def _correlation(both: int, only_a: int, only_b: int, neither: int) -> float:
    n = both + only_a + only_b + neither
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if margins == 0:
        return 0.0
    excess = both * neither - only_a * only_b
    return (max(excess - n / 2, 0) if excess > 0 else excess) / math.sqrt(margins)


def bootstrap(values: NDArray[np.float64], clusters: NDArray[np.intp], *, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of a mean [N], whole clusters drawn with replacement; (-1, 1) without data.

    clusters: [N], numbers from 0 of what each value belongs to.  Source: Davison and Hinkley 1997, section 3.8, resampling of
    whole clusters.
    """
    if not len(values):
        return -1.0, 1.0
    sums, sizes = np.bincount(clusters, values), np.bincount(clusters)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)

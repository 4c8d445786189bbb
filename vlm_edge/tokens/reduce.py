"""Reduction: fewer visual tokens per view, by a method chosen by name. Views stay apart: each gets its own TokenSet."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from vlm_edge.errors import BadInput
from vlm_edge.tokens.baselines import downsample, random_keep
from vlm_edge.tokens.diversity import divprune, landmark
from vlm_edge.tokens.matching import grow_clusters
from vlm_edge.tokens.positions import TokenSet, average_clusters, check_features, check_fraction, keep_all
from vlm_edge.tokens.relevance import cdpruner, visionzip
from vlm_edge.tokens.tome import tome


@dataclass(frozen=True)
class ReduceOptions:
    """What the reducers need beside features; each reads its own part.

    grid: (rows, cols) of tokens in a view.  threshold: cosine above which neighbours merge.  keep: fraction of tokens
    that stay.  seed: of a random choice.  scores: float32 [V, P], what SCORED says that a method chooses by.  rounds: of tome.
    A threshold or keep outside (0, 1] is BadInput, read by the reducer or not.
    """

    grid: tuple[int, int]
    threshold: float = 0.95
    keep: float = 0.5
    seed: int = 0
    scores: NDArray[np.float32] | None = None
    rounds: int | None = None

    def __post_init__(self) -> None:
        check_fraction("threshold", self.threshold)
        check_fraction("keep", self.keep)


Reducer = Callable[[NDArray[np.float32], ReduceOptions], tuple[TokenSet, ...]]
"""features float32 [V, P, D] and options -> one TokenSet per view, in the order of the views."""


def threshold_merge(
    features: NDArray[np.float32], *, grid: tuple[int, int], threshold: float = 0.95
) -> tuple[TokenSet, ...]:
    """Merge neighbouring tokens whose cosine is above `threshold` into their mean; the count depends on the data.

    features: float32 [V, P, D], each view a grid (rows, cols) with P = rows * cols.  Returns one TokenSet per view.
    A threshold of 1 keeps every token. How clusters grow is told in matching.grow_clusters().
    Raises BadInput for a threshold outside (0, 1], features that do not fit the grid, or values that are not finite.
    """
    check_fraction("threshold", threshold)
    if threshold >= 1:
        return keep_all(features, grid=grid)
    check_features(features, grid)
    roots = grow_clusters(features, grid=grid, threshold=threshold)
    return tuple(average_clusters(features[v], roots[v], grid=grid, view=v) for v in range(len(features)))


REDUCERS: Mapping[str, Reducer] = MappingProxyType(
    {
        "none": lambda features, options: keep_all(features, grid=options.grid),
        "threshold": lambda features, options: threshold_merge(
            features, grid=options.grid, threshold=options.threshold
        ),
        "random": lambda features, options: random_keep(
            features, grid=options.grid, keep=options.keep, seed=options.seed
        ),
        "downsample": lambda features, options: downsample(features, grid=options.grid, keep=options.keep),
        "tome": lambda features, options: tome(features, grid=options.grid, keep=options.keep, rounds=options.rounds),
        "divprune": lambda features, options: divprune(features, grid=options.grid, keep=options.keep),
        "cdpruner": lambda features, options: cdpruner(
            features, grid=options.grid, keep=options.keep, relevance=options.scores
        ),
        "visionzip": lambda features, options: visionzip(
            features, grid=options.grid, keep=options.keep, attention=options.scores
        ),
        "landmark": lambda features, options: landmark(
            features, grid=options.grid, keep=options.keep, importance=options.scores
        ),
    }
)
SCORED: Mapping[str, str] = MappingProxyType(
    {"cdpruner": "relevance", "visionzip": "attention", "landmark": "importance"}
)
"""What the scores are that a method chooses by; landmark does without as well."""


def reduce_tokens(
    method: str,
    features: NDArray[np.float32],
    *,
    grid: tuple[int, int],
    threshold: float = 0.95,
    keep: float = 0.5,
    seed: int = 0,
    scores: NDArray[np.float32] | None = None,
    rounds: int | None = None,
) -> tuple[TokenSet, ...]:
    """Apply the reducer of that name to features float32 [V, P, D]: one TokenSet per view.

    scores: float32 [V, P], for the methods in SCORED.  rounds: of tome; None lets it choose.
    Raises BadInput for an unknown name, an option out of range, or features that do not fit the grid.
    """
    if method not in REDUCERS:
        nearest = difflib.get_close_matches(method, REDUCERS, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise BadInput(f"no reducer is called {method!r}", remedy=f"{hint}choose one of {', '.join(REDUCERS)}")
    return REDUCERS[method](features, ReduceOptions(grid, threshold, keep, seed, scores, rounds))

"""Choosing tokens that differ: DivPrune, and landmarks that the rest is merged into."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.reduction import kept_tokens
from vlm_edge.tokens.directions import between, check_scores, directions
from vlm_edge.tokens.positions import (
    TokenSet,
    average_clusters,
    check_features,
    check_fraction,
    keep_all,
    pick_tokens,
)

LEAST_IMPORTANCE = 0.1
"""What the least important token's distance counts for, beside the most important one's 1."""


def divprune(features: NDArray[np.float32], *, grid: tuple[int, int], keep: float) -> tuple[TokenSet, ...]:
    """The kept_tokens() of each view that lie far from each other, unchanged, at their original positions.

    features: float32 [V, P, D].  Distance is 1 - cosine; a zero vector is at distance 1 from everything. First comes the token
    whose nearest other one is farthest, then, again and again, the one that is farthest from those chosen (the earlier
    one of equals).
    Source: Alvar et al., DivPrune (arXiv 2503.02175), who take the greedy way to the max-min diversity problem.
    Raises BadInput for a keep outside (0, 1] or features that do not fit the grid.
    """
    check_fraction("keep", keep)
    check_features(features, grid)
    count = kept_tokens(features.shape[1], keep)
    if count == features.shape[1]:
        return keep_all(features, grid=grid)
    return tuple(
        pick_tokens(tokens, _far_apart(directions(tokens), count), grid=grid, view=view)
        for view, tokens in enumerate(features)
    )


def landmark(
    features: NDArray[np.float32],
    *,
    grid: tuple[int, int],
    keep: float,
    importance: NDArray[np.float32] | None = None,
) -> tuple[TokenSet, ...]:
    """Landmarks that are important and differ; every other token is merged into the one most like it.

    features: float32 [V, P, D].  importance: [V, P], on any scale; None counts all alike.  The most important token comes
    first, then, until there are kept_tokens(), the one with the largest product of distance to the landmarks (1 - cosine)
    and importance, brought to LEAST_IMPORTANCE..1 in each view. The others join the landmark of highest cosine, and each
    cluster becomes its mean.
    Source: our own joining of max-min (farthest-point) landmarks with VisionZip's contextual merging.
    Raises BadInput for a keep outside (0, 1], an importance that does not fit, or features that do not fit the grid.
    """
    check_fraction("keep", keep)
    check_features(features, grid)
    views, tokens, _ = features.shape
    count = kept_tokens(tokens, keep)
    if importance is None:
        importance = np.ones((views, tokens), np.float32)
    importance = check_scores("landmark", importance, features, "importance")
    if count == tokens:
        return keep_all(features, grid=grid)
    sets = []
    for view in range(views):
        units = directions(features[view])
        chosen = _important_and_far(units, between(importance[view], LEAST_IMPORTANCE), count)
        sets.append(average_clusters(features[view], nearest_roots(units, chosen), grid=grid, view=view))
    return tuple(sets)


def nearest_roots(
    units: NDArray[np.float32], chosen: NDArray[np.intp], among: NDArray[np.intp] | None = None
) -> NDArray[np.intp]:
    """[P]: clusters named by their first member, after each token has joined the chosen one of highest cosine.

    among: the chosen tokens that others may join; the rest of them stays alone. A chosen token stays its own.
    """
    among = chosen if among is None else among
    owner = among[(units @ units[among].T).argmax(axis=1)]
    owner[chosen] = chosen
    first = np.full(len(units), len(units))
    np.minimum.at(first, owner, np.arange(len(units)))
    return np.asarray(first[owner])


def _far_apart(units: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Indices [count] of one view, ascending."""
    distances = 1 - units @ units.T
    np.fill_diagonal(distances, np.inf)
    near = distances.min(axis=1)
    chosen = [int(near.argmax())]
    near = distances[chosen[0]].copy()
    near[chosen] = -np.inf
    while len(chosen) < count:
        chosen.append(int(near.argmax()))
        near = np.minimum(near, distances[chosen[-1]])
        near[chosen] = -np.inf
    return np.sort(chosen)


def _important_and_far(units: NDArray[np.float32], weights: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    chosen = [int(weights.argmax())]
    near = np.full(len(units), np.inf)
    while len(chosen) < count:
        near = np.minimum(near, np.maximum(1 - units @ units[chosen[-1]], 0))
        worth = weights * near
        worth[chosen] = -1
        chosen.append(int(worth.argmax()))
    return np.sort(chosen)

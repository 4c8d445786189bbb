"""Matching: which neighbouring visual tokens are alike enough to become one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SCALE_EXPONENT_LIMIT = 120


def grow_clusters(features: NDArray[np.float32], *, grid: tuple[int, int], threshold: float) -> NDArray[np.intp]:
    """Clusters of similar tokens, each connected in its view's grid.

    features: finite float32 [V, P, D].  Returns roots [V, P]: each token's cluster, named by the cluster's first token.

    One raster scan. A token is compared with the running means of its left and its upper neighbour's clusters rather
    than with the neighbours: along a slow gradient neighbours stay alike without end, but the mean stays behind, so the
    cluster ends. The token joins the better of the two if that cosine is over `threshold` (the left one on a tie), else
    it starts a cluster. If the other cosine was over `threshold` as well, and now the one between the two clusters'
    means is, the two unite: otherwise a background would come apart along the seam that the scan leaves at an object.

    A zero vector has cosine 0 with everything, and so in effect has a token 1e-19 times shorter than the view's largest
    value. The views share nothing; they only advance together, so the cost is P steps of a few array operations.
    """
    views, tokens, channels = features.shape
    rows, cols = grid
    # A cosine ignores length, so running sums do for means. The last row, all zero, stands for what is off the grid.
    sums = np.zeros((views * tokens + 1, channels), np.float32)
    np.multiply(features, _scales(features), out=sums[:-1].reshape(features.shape))
    norms = np.sqrt(np.einsum("nd,nd->n", sums, sums, dtype=np.float64))
    norms[norms == 0] = np.inf  # makes the cosine of a zero vector 0
    # Labels are rows of `sums`. The margin above and on the left spares the first row and column a case of their own.
    labels = np.full((views, (rows + 1) * (cols + 1)), views * tokens)
    base = np.arange(views) * tokens
    for token in range(tokens):
        row, col = divmod(token, cols)
        place = (row + 1) * (cols + 1) + col + 1
        own = base + token
        labels[:, place] = own
        near = labels[:, (place - 1, place - cols - 1)]
        dots = np.einsum("vkd,vd->vk", sums[near], sums[own])
        cosines = dots / (norms[near] * norms[own, None])
        passes = cosines > threshold
        joins = np.flatnonzero(passes.any(axis=1))
        if not joins.size:
            continue
        best = cosines[joins].argmax(axis=1)
        labels[joins, place] = near[joins, best]
        _absorb(sums, norms, near[joins, best], own[joins], dots[joins, best])
        between = np.flatnonzero(passes.all(axis=1) & (near[:, 0] != near[:, 1]))
        if between.size:
            _unite(labels, sums, norms, between, near[between], threshold)
    inner = labels.reshape(views, rows + 1, cols + 1)[:, 1:, 1:]
    roots: NDArray[np.intp] = inner.reshape(views, tokens) - base[:, None]
    return roots


def _scales(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """[V, 1, 1]: for each view the power of two that brings its largest value near 1, so that no product overflows."""
    peak = np.maximum(features.max(axis=(1, 2)), -features.min(axis=(1, 2)))
    exponent = np.clip(np.frexp(peak)[1], -SCALE_EXPONENT_LIMIT, SCALE_EXPONENT_LIMIT)
    scales: NDArray[np.float32] = np.ldexp(np.float32(1), -exponent)[:, None, None]
    return scales


def _absorb(
    sums: NDArray[np.float32],
    norms: NDArray[np.float64],
    into: NDArray[np.intp],
    gone: NDArray[np.intp],
    dots: NDArray[np.float32],
) -> None:
    """Add the sums `gone` to the sums `into`, at most one per view; dots: their inner products."""
    sums[into] += sums[gone]
    norms[into] = np.sqrt(norms[into] ** 2 + 2 * dots + norms[gone] ** 2)


def _unite(
    labels: NDArray[np.intp],
    sums: NDArray[np.float32],
    norms: NDArray[np.float64],
    views: NDArray[np.intp],
    pairs: NDArray[np.intp],
    threshold: float,
) -> None:
    """In each of `views` unite its pair of clusters [K, 2] under the earlier root if their means are alike."""
    into, gone = pairs.min(axis=1), pairs.max(axis=1)
    dots = np.einsum("vd,vd->v", sums[into], sums[gone])
    alike = dots > threshold * norms[into] * norms[gone]
    views, into, gone = views[alike], into[alike], gone[alike]
    _absorb(sums, norms, into, gone, dots[alike])
    labels[views] = np.where(labels[views] == gone[:, None], into[:, None], labels[views])

"""Baselines: reductions that look at no token, which every better method has to beat at the same token count."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.reduction import kept_tokens
from vlm_edge.errors import BadInput
from vlm_edge.tokens.positions import TokenSet, check_features, check_fraction, pick_tokens


def pooled_grid(grid: tuple[int, int], keep: float) -> tuple[int, int]:
    """The grid (rows, cols) with the most tokens within kept_tokens(); of equals, that with the squarest pools.

    Of those that are as square, the one with more columns: text loses less that way.

    Example: (8, 8) at 0.25 -> (4, 4), at 0.5 -> (4, 8), at 0.3 -> (3, 6).
    """
    rows, cols = grid
    budget = kept_tokens(rows * cols, keep)
    candidates = [(r, min(cols, budget // r)) for r in range(1, min(rows, budget) + 1)]
    return max(candidates, key=lambda shape: (shape[0] * shape[1], -_elongation(grid, shape)))


def random_keep(
    features: NDArray[np.float32], *, grid: tuple[int, int], keep: float, seed: int
) -> tuple[TokenSet, ...]:
    """A random choice of kept_tokens() tokens from each view, in raster order, at their original positions.

    features: float32 [V, P, D].  Each view has its own choice; it depends on `seed`, the view's index, P and `keep`
    alone. Raises BadInput for a keep outside (0, 1], a negative seed, or features that do not fit the grid.
    """
    check_fraction("keep", keep)
    check_features(features, grid)
    if seed < 0:
        raise BadInput(f"seed is {seed}", remedy="give a seed of 0 or more")
    views, tokens, _ = features.shape
    count = kept_tokens(tokens, keep)
    sets = []
    for view in range(views):
        chosen = np.sort(np.random.default_rng((seed, view)).choice(tokens, count, replace=False))
        sets.append(pick_tokens(features[view], chosen, grid=grid, view=view))
    return tuple(sets)


def downsample(features: NDArray[np.float32], *, grid: tuple[int, int], keep: float) -> tuple[TokenSet, ...]:
    """Each view's grid average-pooled to pooled_grid().

    features: float32 [V, P, D].  Pool i of n along an axis of N tokens averages tokens floor(i N / n) to
    ceil((i + 1) N / n) - 1, as PyTorch's adaptive_avg_pool2d does: where n does not divide N, neighbouring pools share
    a token. In sizes and members such a token counts with the pool that holds its centre, so that sizes sum to P;
    positions are the centres of the pools.
    Raises BadInput for a keep outside (0, 1] or features that do not fit the grid.
    """
    check_fraction("keep", keep)
    check_features(features, grid)
    rows, cols = grid
    pooled_rows, pooled_cols = pooled_grid(grid, keep)
    count = pooled_rows * pooled_cols
    down, across = _pools(rows, pooled_rows), _pools(cols, pooled_cols)
    members = _members(grid, (pooled_rows, pooled_cols))
    sizes = np.bincount(members, minlength=count).astype(np.int32)
    centres = [((a + b - 1) / 2, (c + d - 1) / 2) for a, b in down for c, d in across]
    views, _, channels = features.shape
    maps = features.reshape(views, rows, cols, channels)
    narrow = np.stack([maps[:, :, c:d].mean(axis=2, dtype=np.float64) for c, d in across], axis=2)
    pooled = np.stack([narrow[:, a:b].mean(axis=1) for a, b in down], axis=1)
    tokens = pooled.reshape(views, count, channels).astype(np.float32)
    return tuple(
        TokenSet(tokens[view], sizes, np.array([(view, *centre) for centre in centres], np.float32), members)
        for view in range(views)
    )


def pooling(grid: tuple[int, int], keep: float) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """What downsample() does, as weights [K, P] by which a view's tokens are summed, and the pool [P] that each counts with."""
    (rows, cols), (pooled_rows, pooled_cols) = grid, pooled_grid(grid, keep)
    down, across = np.zeros((pooled_rows, rows)), np.zeros((pooled_cols, cols))
    for axis, tokens, pools in ((down, rows, pooled_rows), (across, cols, pooled_cols)):
        for pool, (start, end) in enumerate(_pools(tokens, pools)):
            axis[pool, start:end] = 1 / (end - start)
    return np.asarray(np.kron(down, across), np.float64), _members(grid, (pooled_rows, pooled_cols))


def _members(grid: tuple[int, int], pooled: tuple[int, int]) -> NDArray[np.int32]:
    down, across = (_owners(tokens, pools) for tokens, pools in zip(grid, pooled, strict=True))
    return np.asarray((down[:, None] * pooled[1] + across).reshape(-1), np.int32)


def _elongation(grid: tuple[int, int], shape: tuple[int, int]) -> float:
    """How far a pool is from square: the ratio of its longer to its shorter side."""
    height, width = grid[0] / shape[0], grid[1] / shape[1]
    return max(height, width) / min(height, width)


def _pools(tokens: int, pools: int) -> list[tuple[int, int]]:
    """Where each pool along an axis starts and ends."""
    return [(i * tokens // pools, -(-(i + 1) * tokens // pools)) for i in range(pools)]


def _owners(tokens: int, pools: int) -> NDArray[np.int32]:
    """int32 [tokens]: the pool that holds each token's centre."""
    return ((2 * np.arange(tokens, dtype=np.int32) + 1) * pools // (2 * tokens)).astype(np.int32)

"""Token sets: the visual tokens of one view, where they stand, and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_edge.errors import BadInput

DROPPED = -1


@dataclass(frozen=True, eq=False)
class TokenSet:
    """The tokens of one view after a reduction, in raster order of what each one covers first.

    features: float32 [T, D]; may share memory with the reducer's input.
    sizes: int32 [T], how many of the view's P original tokens each stands for; sums to P after merging, and is 1 for
    every token after pruning.
    positions: float32 [T, 3], view index, row and column in grid cells; fractional where a token covers several cells.
    members: int32 [P], the token that each original token went to, in the grid's raster order; DROPPED if to none.
    """

    features: NDArray[np.float32]
    sizes: NDArray[np.int32]
    positions: NDArray[np.float32]
    members: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.sizes)


def row_order(sets: Sequence[TokenSet], grid: tuple[int, int]) -> NDArray[np.intp]:
    """Order [T] in which the tokens of views that stand side by side, one set after the other, are read row by row.

    A token belongs to the row of the first cell that it covers, so whatever a reduction left of a line of text that runs
    over a border follows at once. One view stays in its own order.
    """
    rows = []
    for view in sets:
        tokens, first = np.unique(view.members, return_index=True)
        rows.append(first[tokens != DROPPED] // grid[1])
    return np.argsort(np.concatenate(rows), kind="stable")


def check_features(features: NDArray[np.float32], grid: tuple[int, int]) -> None:
    """Raise BadInput unless `features` is a finite float32 [V, rows * cols, D] for `grid` = (rows, cols)."""
    rows, cols = grid
    if features.ndim != 3 or features.dtype != np.float32:
        raise BadInput(
            f"visual features are {features.dtype} {list(features.shape)}, not float32 [views, tokens, channels]",
            remedy="cast them to float32 and stack the views along the first axis",
        )
    _, tokens, channels = features.shape
    if rows < 1 or cols < 1 or channels < 1 or rows * cols != tokens:
        raise BadInput(
            f"{tokens} tokens of {channels} channels do not fill a grid of {rows} x {cols}",
            remedy="pass rows * columns tokens per view, without a class token",
        )
    if features.size and not (np.isfinite(features.max()) and np.isfinite(features.min())):
        raise BadInput(
            "visual features hold NaN or infinite values",
            remedy="the vision encoder overflowed; export it again with --dtype fp32",
        )


def check_fraction(name: str, value: float) -> None:
    """Raise BadInput unless 0 < value <= 1; NaN is refused too."""
    if not 0 < value <= 1:
        raise BadInput(f"{name} is {value}, outside (0, 1]", remedy=f"give a {name} above 0 and at most 1")


def grid_positions(grid: tuple[int, int], view: int) -> NDArray[np.float32]:
    """float32 [rows * cols, 3]: (view, row, column) of every grid cell, in raster order."""
    rows, cols = np.indices(grid).reshape(2, -1)
    return np.stack([np.full_like(rows, view), rows, cols], axis=1).astype(np.float32)


def keep_all(features: NDArray[np.float32], *, grid: tuple[int, int]) -> tuple[TokenSet, ...]:
    """Every token of every view, unchanged: features [V, P, D] -> V sets of P tokens."""
    check_features(features, grid)
    count = features.shape[1]
    ones, own = np.ones(count, np.int32), np.arange(count, dtype=np.int32)
    return tuple(TokenSet(tokens, ones, grid_positions(grid, view), own) for view, tokens in enumerate(features))


def average_clusters(
    features: NDArray[np.float32], roots: NDArray[np.intp], *, grid: tuple[int, int], view: int
) -> TokenSet:
    """One token per cluster of a view: the mean of its members' features, at the mean of their positions.

    features: [P, D].  roots: [P], each token's cluster, named by the index of the cluster's first member.
    Sums are taken in float64, so that none overflows; a token alone in its cluster comes out bit for bit.
    """
    first, members, sizes = np.unique(roots, return_inverse=True, return_counts=True)
    order = np.argsort(members, kind="stable")
    places = np.add.reduceat(grid_positions(grid, view)[order], np.cumsum(sizes) - sizes, axis=0) / sizes[:, None]
    means = features[first]
    merged = sizes > 1
    if merged.any():
        grouped, counts = order[merged[members[order]]], sizes[merged]
        sums = np.add.reduceat(features[grouped], np.cumsum(counts) - counts, axis=0, dtype=np.float64)
        means[merged] = sums / counts[:, None]
    return TokenSet(means, sizes.astype(np.int32), places.astype(np.float32), members.astype(np.int32))


def pick_tokens(
    features: NDArray[np.float32], chosen: NDArray[np.intp], *, grid: tuple[int, int], view: int
) -> TokenSet:
    """The chosen tokens of a view as they are; the others are dropped.  features: [P, D].  chosen: indices, ascending."""
    members = np.full(len(features), DROPPED, np.int32)
    members[chosen] = np.arange(len(chosen))
    positions = grid_positions(grid, view)[chosen]
    return TokenSet(features[chosen], np.ones(len(chosen), np.int32), positions, members)

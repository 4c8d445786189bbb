"""ToMe: bipartite soft matching to a fixed number of tokens, over several rounds.

Source: Bolya et al., Token Merging: Your ViT But Faster (arXiv 2210.09461). There it runs inside the tower, once a layer; here
after it, on ready-made models, so rounds stand for layers, and attention is not weighted by sizes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.reduction import kept_tokens
from vlm_edge.errors import BadInput
from vlm_edge.tokens.directions import directions
from vlm_edge.tokens.positions import TokenSet, average_clusters, check_features, check_fraction, keep_all

MOST_SHARE = 1 / 8
"""Of the tokens there are, how many one round may merge: a quarter of those that look for a partner.

Half of all tokens look for one. A round that merges all of them forces letters into the background that lies beside them.
"""


def merge_schedule(tokens: int, keep: float, rounds: int | None = None) -> tuple[int, ...]:
    """How many tokens each round takes away, from `tokens` to kept_tokens().

    rounds: None lets each round take MOST_SHARE of what there is, or one token; a number shares the work evenly, so that each
    round leaves about the same part of what the one before it left.
    Raises BadInput for too few rounds: one at most halves the tokens.
    Example: 64 tokens, keep 0.5 -> (8, 7, 6, 5, 4, 2); in 2 rounds (19, 13).
    """
    count = kept_tokens(tokens, keep)
    taken: list[int] = []
    left = tokens
    while left > count:
        if rounds is None:
            share = max(1, int(left * MOST_SHARE))
        elif len(taken) < rounds:
            share = math.ceil(left * (1 - (count / left) ** (1 / (rounds - len(taken)))) - 1e-9)
        else:
            raise BadInput(
                f"{rounds} round(s) cannot merge {tokens} tokens into {count}: one round at most halves them",
                remedy=f"allow {_least_rounds(tokens, count)} rounds or more",
            )
        taken.append(min(share, left - count, left // 2))
        left -= taken[-1]
    return tuple(taken)


def _least_rounds(tokens: int, count: int) -> int:
    rounds = 0
    while tokens > count:
        tokens -= tokens // 2
        rounds += 1
    return rounds


def tome(
    features: NDArray[np.float32], *, grid: tuple[int, int], keep: float, rounds: int | None = None
) -> tuple[TokenSet, ...]:
    """Each view's tokens merged pair by pair until kept_tokens() are left.

    features: float32 [V, P, D].  In every round the tokens, in raster order of what they cover first, are dealt in turn into
    two sets. Each of the first set (the 1st, 3rd, ...) finds the most similar of the second by cosine; the most similar pairs,
    as many as merge_schedule() says, become their mean, weighted by how many tokens each already stands for.
    Of equal cosines the earlier token's goes first. A zero vector has cosine 0 with everything.
    Raises BadInput for a keep outside (0, 1], too few rounds, or features that do not fit the grid.
    """
    check_fraction("keep", keep)
    check_features(features, grid)
    schedule = merge_schedule(features.shape[1], keep, rounds)
    if not schedule:
        return keep_all(features, grid=grid)
    return tuple(
        average_clusters(tokens, _roots(tokens, schedule), grid=grid, view=view) for view, tokens in enumerate(features)
    )


def _roots(features: NDArray[np.float32], schedule: tuple[int, ...]) -> NDArray[np.intp]:
    """[P]: each token's cluster, named by its first member."""
    count = len(features)
    roots = np.arange(count)
    sums, units = features.astype(np.float64), directions(features)
    alive = np.arange(count)  # first members, ascending, so that their order is the tokens' raster order
    for merges in schedule:
        seekers, partners = alive[::2], alive[1::2]
        cosines = units[seekers] @ units[partners].T
        best = cosines.argmax(axis=1)
        chosen = np.argsort(-cosines[np.arange(len(seekers)), best], kind="stable")[:merges]
        gone, into = seekers[chosen], partners[best[chosen]]
        np.add.at(sums, into, sums[gone])
        home = np.arange(count)
        home[gone] = into
        roots = home[roots]
        first = np.full(count, count)
        np.minimum.at(first, roots, np.arange(count))
        grown = np.unique(into)
        sums[first[grown]] = sums[grown]
        units[first[grown]] = _unit(sums[grown])
        roots = first[roots]
        alive = np.unique(roots)
    return roots


def _unit(sums: NDArray[np.float64]) -> NDArray[np.float32]:
    """Unit vectors of sums [N, D]; float64 holds the squares of whatever float32 features come to."""
    lengths = np.sqrt(np.einsum("nd,nd->n", sums, sums))[:, None]
    return np.asarray(sums / np.where(lengths > 0, lengths, 1), np.float32)

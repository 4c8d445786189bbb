"""Choosing tokens that matter to something: CDPruner (to a question), VisionZip (to the tower's class token)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.reduction import kept_tokens
from vlm_edge.tokens.directions import between, check_scores, directions
from vlm_edge.tokens.diversity import nearest_roots
from vlm_edge.tokens.positions import (
    TokenSet,
    average_clusters,
    check_features,
    check_fraction,
    keep_all,
    pick_tokens,
)

LEAST_RELEVANCE = 0.01
"""What the least relevant token's quality is, beside the most relevant one's 1: diversity can still bring it in."""
RIDGE = 1e-4
"""Added to each token's likeness to itself, so that a token equal to a chosen one is still worth a little."""
CONTEXTUAL_SHARE = 10 / 64
"""Of the tokens that VisionZip keeps, how many stand for all that are not dominant; the paper's 54 + 10 of 64."""


def cdpruner(
    features: NDArray[np.float32], *, grid: tuple[int, int], keep: float, relevance: NDArray[np.float32] | None
) -> tuple[TokenSet, ...]:
    """The kept_tokens() of each view that are relevant and differ, unchanged, at their original positions.

    features: float32 [V, P, D].  relevance: [V, P] to the question, on any scale; brought to LEAST_RELEVANCE..1 in each view.
    A determinantal point process with the kernel q_i (cosine_ij + RIDGE * [i = j]) q_j, q being the relevance, is maximised
    greedily: each step takes the token that multiplies the determinant most (the earlier one of equals).
    Sources: Zhang et al., CDPruner (arXiv 2506.10967); Chen et al., fast greedy MAP inference (arXiv 1709.05135).
    Raises BadInput for a keep outside (0, 1], without a relevance per token, or for features that do not fit the grid.
    """
    check_fraction("keep", keep)
    check_features(features, grid)
    scores = check_scores("cdpruner", relevance, features, "relevance to the question")
    count = kept_tokens(features.shape[1], keep)
    if count == features.shape[1]:
        return keep_all(features, grid=grid)
    sets = []
    for view, tokens in enumerate(features):
        chosen = _greedy_determinant(directions(tokens), between(scores[view], LEAST_RELEVANCE), count)
        sets.append(pick_tokens(tokens, chosen, grid=grid, view=view))
    return tuple(sets)


def visionzip(
    features: NDArray[np.float32], *, grid: tuple[int, int], keep: float, attention: NDArray[np.float32] | None
) -> tuple[TokenSet, ...]:
    """Each view's tokens that its class token attends to most, and contextual tokens that the others are merged into.

    features: float32 [V, P, D].  attention: [V, P], what the class token pays to each patch in the layer that the features
    are taken from, averaged over heads.  Of the kept_tokens(), contextual_tokens() are taken at even steps from what is not
    dominant; the rest of that joins the one of highest cosine, and each group becomes its mean. A single token that is kept
    is dominant, and the others are dropped.
    Source: Yang et al., VisionZip (arXiv 2412.04467); there keys decide which tokens are alike, here the features do.
    Raises BadInput for a keep outside (0, 1], without an attention per token, or for features that do not fit the grid.
    """
    check_fraction("keep", keep)
    check_features(features, grid)
    scores = check_scores("visionzip", attention, features, "the class token's attention")
    tokens = features.shape[1]
    count = kept_tokens(tokens, keep)
    if count == tokens:
        return keep_all(features, grid=grid)
    contextual = contextual_tokens(count)
    sets = []
    for view in range(len(features)):
        order = np.argsort(-scores[view], kind="stable")
        dominant, rest = np.sort(order[: count - contextual]), np.sort(order[count - contextual :])
        if not contextual:
            sets.append(pick_tokens(features[view], dominant, grid=grid, view=view))
            continue
        targets = rest[np.arange(contextual) * len(rest) // contextual]
        chosen = np.concatenate([dominant, targets])
        roots = nearest_roots(directions(features[view]), chosen, among=targets)
        sets.append(average_clusters(features[view], roots, grid=grid, view=view))
    return tuple(sets)


def text_relevance(features: NDArray[np.float32], words: NDArray[np.float32]) -> NDArray[np.float32]:
    """How near each visual token is to a text: the mean cosine with its words' embeddings.

    features: float32 [V, P, D] behind the projector.  words: float32 [N, D], embeddings that the decoder reads.  Returns float32
    [V, P].  The two share a space because the decoder reads both; nothing was trained to make their cosines mean anything,
    as CLIP's pair of towers was. A zero vector has cosine 0 with everything.
    """
    text = directions(words).mean(axis=0)
    return np.stack([directions(view) @ text for view in features]) if len(features) else np.zeros((0, 0), np.float32)


def contextual_tokens(kept: int) -> int:
    """How many of VisionZip's tokens are contextual: at least one, unless only one token is kept."""
    return 0 if kept == 1 else max(1, round(kept * CONTEXTUAL_SHARE))


def _greedy_determinant(units: NDArray[np.float32], quality: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Indices [count], ascending. Each row of a Cholesky factor is added when its token is chosen."""
    rows = np.zeros((count, len(units)))
    lengths = np.einsum("pd,pd->p", units, units, dtype=np.float64)
    gains = quality**2 * (lengths + RIDGE)
    chosen: list[int] = []
    for step in range(count):
        gains[chosen] = -np.inf
        best = int(gains.argmax())
        chosen.append(best)
        kernel = quality[best] * quality * (units @ units[best]).astype(np.float64)
        row = (kernel - rows[:step, best] @ rows[:step]) / np.sqrt(max(gains[best], np.finfo(np.float64).tiny))
        rows[step] = row
        gains = gains - row**2
    return np.sort(chosen)

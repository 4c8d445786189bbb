"""Directions: visual tokens as unit vectors, so that inner products are cosines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlm_edge.errors import BadInput


def directions(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit vectors float32 [P, D] of one view's features [P, D]; a zero vector stays zero, so its cosines are 0.

    Each row is divided by its largest value first, so no square overflows or vanishes.
    """
    peaks = np.abs(features).max(axis=1, keepdims=True)
    scaled = features / np.where(peaks > 0, peaks, 1)
    lengths = np.sqrt(np.einsum("pd,pd->p", scaled, scaled, dtype=np.float64))[:, None]
    return np.asarray(scaled / np.where(lengths > 0, lengths, 1), np.float32)


def check_scores(
    method: str, scores: NDArray[np.float32] | None, features: NDArray[np.float32], what: str
) -> NDArray[np.float32]:
    """The scores float32 [V, P]; raises BadInput unless there are as many finite ones as features [V, P, D] have tokens.

    what: that the scores are, for the message.
    """
    if scores is None:
        raise BadInput(f"{method} chooses by {what}, and none is given", remedy=f"pass one value of {what} per token")
    if scores.shape != features.shape[:2] or not np.isfinite(scores).all():
        raise BadInput(
            f"{method} got {what} {list(scores.shape)} for {list(features.shape[:2])} tokens, or values that are not finite",
            remedy=f"pass one finite value of {what} per token",
        )
    return np.asarray(scores, np.float32)


def between(scores: NDArray[np.float32], least: float) -> NDArray[np.float64]:
    """Scores [P] brought to least..1 along a line; all 1 where they are equal."""
    low, high = float(scores.min()), float(scores.max())
    if high <= low:
        return np.ones(len(scores))
    return least + (1 - least) * (scores.astype(np.float64) - low) / (high - low)

"""Choosing the next token from logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlm_edge.errors import CheckFailed


def choose(logits: NDArray[np.float32], *, temperature: float, top_p: float, rng: np.random.Generator) -> int:
    """Greedy for temperature 0, else a draw from the smallest set of tokens whose probability reaches top_p.

    logits: [V], -inf for a token that must not come.  Ties go to the lowest id.  Raises CheckFailed for NaN and inf.
    """
    best = int(np.argmax(logits))
    if not np.isfinite(logits[best]):
        raise CheckFailed(
            "the decoder produced logits that are not finite", remedy="export the decoder again with --dtype fp32"
        )
    if temperature == 0:
        return best
    with np.errstate(over="ignore"):  # a tiny temperature makes all but the best -inf, which is what it means
        scaled = (logits.astype(np.float64) - float(logits[best])) / temperature
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    cumulative = np.cumsum(probabilities[order])
    kept = order[: int(np.searchsorted(cumulative, top_p)) + 1]
    return int(rng.choice(kept, p=probabilities[kept] / probabilities[kept].sum()))

"""Choosing the next token from logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def choose(logits: NDArray[np.float32], *, temperature: float, top_p: float, rng: np.random.Generator) -> int:
    """Greedy for temperature 0, else a draw from the smallest set of tokens whose probability reaches top_p.

    logits: [V].  Ties in greedy choice go to the lowest id.
    """
    if temperature == 0:
        return int(np.argmax(logits))
    scaled = (logits - logits.max()).astype(np.float64) / temperature
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    cumulative = np.cumsum(probabilities[order])
    kept = order[: int(np.searchsorted(cumulative, top_p)) + 1]
    return int(rng.choice(kept, p=probabilities[kept] / probabilities[kept].sum()))

"""Visual-token reduction in NumPy: merging, pruning, and the baselines to measure them against."""

from __future__ import annotations

from vlm_edge.tokens.baselines import downsample, random_keep
from vlm_edge.tokens.diversity import divprune, landmark
from vlm_edge.tokens.positions import DROPPED, TokenSet
from vlm_edge.tokens.reduce import REDUCERS, SCORED, ReduceOptions, Reducer, reduce_tokens, threshold_merge
from vlm_edge.tokens.relevance import cdpruner, visionzip
from vlm_edge.tokens.tome import tome

__all__ = [
    "DROPPED",
    "REDUCERS",
    "SCORED",
    "ReduceOptions",
    "Reducer",
    "TokenSet",
    "cdpruner",
    "divprune",
    "downsample",
    "landmark",
    "random_keep",
    "reduce_tokens",
    "threshold_merge",
    "tome",
    "visionzip",
]

"""Visual-token reduction in NumPy: similarity merging, and the baselines to measure it against."""

from __future__ import annotations

from vlm_edge.tokens.baselines import downsample, random_keep
from vlm_edge.tokens.positions import DROPPED, TokenSet
from vlm_edge.tokens.reduce import REDUCERS, ReduceOptions, Reducer, reduce_tokens, threshold_merge

__all__ = [
    "DROPPED",
    "REDUCERS",
    "ReduceOptions",
    "Reducer",
    "TokenSet",
    "downsample",
    "random_keep",
    "reduce_tokens",
    "threshold_merge",
]

"""The methods of reducers.py as nodes. Each gives rows of ones and zeros [V, K, P]: which of P tokens each of K covers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlm_edge.backends.onnx.graph_builder import GraphBuilder
from vlm_edge.tokens.diversity import LEAST_IMPORTANCE
from vlm_edge.tokens.relevance import contextual_tokens
from vlm_edge.vision.saliency import RING

FEATURES, SCORES = "features", "scores"
_LEAST_LENGTH = 1e-30
_LEAST_SUM = 1e-6
"""Of unit vectors: a shorter sum is what rounding left of nothing."""
_FAR = 4.0
"""More than any distance or cosine differs from another."""


def all_views(build: GraphBuilder, tokens: int) -> str:
    """Every token by itself, in every view."""
    views = build.op("Slice", build.op("Shape", FEATURES), build.integers(0), build.integers(1))
    shape = build.op("Concat", views, build.integers(tokens, tokens), axis=0)
    return build.op("Expand", build.constant(np.eye(tokens, dtype=np.float32)[None]), shape)


def tome_rows(build: GraphBuilder, tokens: int, schedule: Sequence[int]) -> str:
    """Rounds of bipartite matching; the state between them is the rows alone, as sums have the direction of means."""
    rows, left = all_views(build, tokens), tokens
    for merges in schedule:
        units = _directions(build, build.op("MatMul", rows, FEATURES))
        seekers, partners = (build.integers(*range(start, left, 2)) for start in (0, 1))
        cosines = _cosines(
            build, build.op("Gather", units, seekers, axis=1), build.op("Gather", units, partners, axis=1)
        )
        best = build.op("ReduceMax", cosines, build.integers(2), keepdims=0)
        _, chosen = build.ops("TopK", best, build.integers(merges), outputs=("", ""), axis=1, sorted=1)
        merged = build.op("ReduceMax", _one_hot(build, chosen, (left + 1) // 2), build.integers(1), keepdims=1)
        partner = build.op("ArgMax", cosines, axis=2, keepdims=0)
        joins = build.op("Mul", build.op("Transpose", _one_hot(build, partner, left // 2), perm=[0, 2, 1]), merged)
        from_seekers = build.op("Gather", rows, seekers, axis=1)
        grown = build.op("Add", build.op("Gather", rows, partners, axis=1), build.op("MatMul", joins, from_seekers))
        together = build.op("Concat", from_seekers, grown, axis=1)
        gone = build.op("Pad", build.op("Squeeze", merged, build.integers(1)), build.integers(0, 0, 0, left // 2))
        left -= merges
        rows = _by_first(build, together, left, tokens, gone)
    return rows


def divprune_rows(build: GraphBuilder, tokens: int, count: int) -> str:
    """Farthest-point choice, a step for each token that is kept."""
    units = _directions(build, FEATURES)
    cosines = _cosines(build, units, units)
    others = build.op("Sub", cosines, build.constant(_FAR * np.eye(tokens, dtype=np.float32)[None]))
    nearest = build.op("ReduceMax", others, build.integers(2), keepdims=0)
    taken = chosen = _largest(build, build.op("Neg", nearest), tokens)
    near = ""
    for _ in range(count - 1):
        distance = _distances_to(build, chosen, cosines)
        near = build.op("Min", near, distance) if near else distance
        chosen = _largest(build, _without(build, near, taken), tokens)
        taken = build.op("Add", taken, chosen)
    return _rows_of(build, taken, tokens, count)


def novelty_scores(build: GraphBuilder, grid: tuple[int, int]) -> str:
    """vision.saliency.novelty of each token [V, P]: 1 - cosine with the mean direction of those around it."""
    places = np.stack(np.unravel_index(np.arange(grid[0] * grid[1]), grid))
    distance = np.abs(places[:, :, None] - places[:, None]).max(0)
    around = ((distance > 0) & (distance <= RING)).astype(np.float32)
    units = _directions(build, FEATURES)
    mean = build.op("MatMul", build.constant(around), units)
    length = build.op("ReduceL2", mean, build.integers(2), keepdims=0)
    product = build.op("ReduceSum", build.op("Mul", mean, units), build.integers(2), keepdims=0)
    cosine = build.op("Div", product, build.op("Max", length, build.number(_LEAST_SUM)))
    # what has no direction, or nothing around it, is not novel
    own = build.op("ReduceL2", units, build.integers(2), keepdims=0)
    for size in (length, own):
        cosine = build.op("Where", build.op("Greater", size, build.number(_LEAST_SUM)), cosine, build.number(1))
    return build.op("Relu", build.op("Sub", build.number(1), cosine))


def landmark_rows(build: GraphBuilder, tokens: int, count: int, scores: str = SCORES) -> str:
    """Farthest-point choice weighted by importance, [V, P]; the rest joins the nearest landmark."""
    low = build.op("ReduceMin", scores, build.integers(1), keepdims=1)
    high = build.op("ReduceMax", scores, build.integers(1), keepdims=1)
    spread = build.op("Max", build.op("Sub", high, low), build.number(_LEAST_LENGTH))
    share = build.op("Div", build.op("Sub", scores, low), spread)
    weights = build.op(
        "Add", build.op("Mul", share, build.number(1 - LEAST_IMPORTANCE)), build.number(LEAST_IMPORTANCE)
    )
    units = _directions(build, FEATURES)
    cosines = _cosines(build, units, units)
    taken = chosen = _largest(build, weights, tokens)
    near = ""
    for _ in range(count - 1):
        distance = build.op("Relu", _distances_to(build, chosen, cosines))
        near = build.op("Min", near, distance) if near else distance
        chosen = _largest(build, _without(build, build.op("Mul", weights, near), taken), tokens)
        taken = build.op("Add", taken, chosen)
    rows = _with_nearest(build, _rows_of(build, taken, tokens, count), cosines, taken, count)
    return _by_first(build, rows, count, tokens)


def visionzip_rows(build: GraphBuilder, tokens: int, count: int) -> str:
    """The tokens of most attention, and some of the rest at even steps, which all others join."""
    contextual = contextual_tokens(count)
    _, best = build.ops("TopK", SCORES, build.integers(count - contextual), outputs=("", ""), axis=1, sorted=1)
    dominant = build.op("ReduceMax", _one_hot(build, best, tokens), build.integers(1), keepdims=0)
    if not contextual:
        return _rows_of(build, dominant, tokens, count)
    rest = tokens - count + contextual
    rows_of_rest = _rows_of(build, build.op("Sub", build.number(1), dominant), tokens, rest)
    steps = build.integers(*(np.arange(contextual) * rest // contextual).tolist())
    targets = build.op("Gather", rows_of_rest, steps, axis=1)
    taken = build.op("Add", dominant, build.op("ReduceSum", targets, build.integers(1), keepdims=0))
    units = _directions(build, FEATURES)
    grown = _with_nearest(build, targets, _cosines(build, units, units), taken, contextual)
    alone = _rows_of(build, dominant, tokens, count - contextual)
    return _by_first(build, build.op("Concat", alone, grown, axis=1), count, tokens)


def _directions(build: GraphBuilder, features: str) -> str:
    length = build.op("ReduceL2", features, build.integers(2), keepdims=1)
    return build.op("Div", features, build.op("Max", length, build.number(_LEAST_LENGTH)))


def _cosines(build: GraphBuilder, one: str, other: str) -> str:
    return build.op("MatMul", one, build.op("Transpose", other, perm=[0, 2, 1]))


def _one_hot(build: GraphBuilder, indices: str, size: int) -> str:
    """[V, N] -> float32 [V, N, size]."""
    wide = build.op("Unsqueeze", indices, build.integers(2))
    return build.floats(build.op("Equal", wide, build.constant(np.arange(size, dtype=np.int64)[None, None])))


def _largest(build: GraphBuilder, values: str, tokens: int) -> str:
    """[V, P] -> the first largest as ones and zeros [V, P]."""
    best = build.op("ArgMax", values, axis=1, keepdims=1)
    return build.floats(build.op("Equal", best, build.constant(np.arange(tokens, dtype=np.int64)[None])))


def _distances_to(build: GraphBuilder, chosen: str, cosines: str) -> str:
    """1 - cosine of every token to the one chosen, [V, P]."""
    row = build.op("MatMul", build.op("Unsqueeze", chosen, build.integers(1)), cosines)
    return build.op("Sub", build.number(1), build.op("Squeeze", row, build.integers(1)))


def _without(build: GraphBuilder, values: str, taken: str) -> str:
    """The values [V, P], less than any other where a token is taken."""
    free = build.op("Less", taken, build.number(0.5))
    return build.op("Where", free, values, build.number(-_FAR))


def _rows_of(build: GraphBuilder, taken: str, tokens: int, count: int) -> str:
    """Ones and zeros [V, P] with `count` ones -> one row for each of them, in raster order."""
    order = np.arange(tokens, dtype=np.float32)[None]
    rank = build.op("Sub", build.op("Mul", taken, build.number(tokens)), build.constant(order))
    _, chosen = build.ops("TopK", rank, build.integers(count), outputs=("", ""), axis=1, sorted=1)
    return _one_hot(build, chosen, tokens)


def _with_nearest(build: GraphBuilder, targets: str, cosines: str, taken: str, count: int) -> str:
    """Rows of `count` targets with every token that is not taken added to the most similar of them."""
    owner = build.op("ArgMax", build.op("MatMul", targets, cosines), axis=1, keepdims=0)
    whose = build.op("Transpose", _one_hot(build, owner, count), perm=[0, 2, 1])
    free = build.op("Unsqueeze", build.op("Sub", build.number(1), taken), build.integers(1))
    return build.op("Add", targets, build.op("Mul", whose, free))


def _by_first(build: GraphBuilder, rows: str, count: int, tokens: int, gone: str = "") -> str:
    """The `count` rows that are not gone, by the first token that each covers.  gone: ones and zeros for each row."""
    first = build.floats(build.op("ArgMax", rows, axis=2, keepdims=0))
    late = build.op("Add", first, build.op("Mul", gone, build.number(2 * tokens))) if gone else first
    _, order = build.ops("TopK", build.op("Neg", late), build.integers(count), outputs=("", ""), axis=1, sorted=1)
    picked = build.op("Unsqueeze", order, build.integers(2))
    shape = build.op("Concat", build.op("Shape", order), build.integers(tokens), axis=0)
    return build.op("GatherElements", rows, build.op("Expand", picked, shape), axis=1)

"""DivPrune and landmarks against loops over pairs in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.tokens.features import Decisions, cosine, patchy
from vlm_edge.core.reduction import kept_tokens
from vlm_edge.errors import BadInput
from vlm_edge.tokens import DROPPED, divprune, landmark
from vlm_edge.tokens.diversity import LEAST_IMPORTANCE

shapes = st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 6), st.integers(2, 12))
keeps = st.floats(0.05, 0.95)
seeds = st.integers(0, 2**32 - 1)


def pairs(view: np.ndarray) -> list[list[float]]:
    vectors = [[float(x) for x in token] for token in view]
    return [[1 - cosine(a, b) for b in vectors] for a in vectors]


def slow_divprune(view: np.ndarray, count: int) -> tuple[list[int], Decisions]:
    far, decisions = pairs(view), Decisions()
    tokens = range(len(view))
    chosen: list[int] = []
    while len(chosen) < count:
        rest = [i for i in tokens if i not in chosen]
        others = chosen or None
        values = {i: min((far[i][j] for j in (others or tokens) if j != i), default=math.inf) for i in rest}
        chosen.append(decisions.largest(values))
    return sorted(chosen), decisions


@settings(max_examples=120, deadline=None)
@given(seeds, shapes, keeps)
def test_divprune_keeps_what_a_slow_loop_keeps(seed, shape, keep):
    features, grid = patchy(seed, shape), shape[1:3]
    tokens = grid[0] * grid[1]
    count = kept_tokens(tokens, keep)
    assume(count < tokens)
    for number, (kept, view) in enumerate(zip(divprune(features, grid=grid, keep=keep), features, strict=True)):
        expected, decisions = slow_divprune(view, count)
        assume(decisions.clear)
        assert np.flatnonzero(kept.members != DROPPED).tolist() == expected
        np.testing.assert_array_equal(kept.features, view[expected])
        assert kept.positions.tolist() == [[number, *divmod(i, grid[1])] for i in expected]
        assert kept.sizes.tolist() == [1] * count


def test_divprune_takes_one_of_each_kind_before_a_second():
    kinds = np.eye(4, dtype=np.float32)
    features = kinds[[0, 0, 0, 1, 0, 0, 2, 0, 3, 0, 0, 0]][None]
    kept = divprune(features, grid=(3, 4), keep=1 / 3)[0]
    assert sorted(kept.features.argmax(1).tolist()) == [0, 1, 2, 3]


def slow_landmark(view: np.ndarray, scores: np.ndarray, count: int) -> tuple[list[int], Decisions]:
    far, decisions = pairs(view), Decisions()
    low, high = float(min(scores)), float(max(scores))
    weights = [
        LEAST_IMPORTANCE + (1 - LEAST_IMPORTANCE) * (float(s) - low) / (high - low) if high > low else 1.0
        for s in scores
    ]
    chosen = [decisions.largest(dict(enumerate(weights)))]
    while len(chosen) < count:
        values = {i: weights[i] * max(0.0, min(far[i][j] for j in chosen)) for i in range(len(view)) if i not in chosen}
        chosen.append(decisions.largest(values))
    home = []
    for i in range(len(view)):
        near = {place: -far[i][c] for place, c in enumerate(sorted(chosen))}
        home.append(i if i in chosen else sorted(chosen)[decisions.largest(near)])
    firsts = {root: min(i for i, h in enumerate(home) if h == root) for root in set(home)}
    return [firsts[h] for h in home], decisions


@settings(max_examples=120, deadline=None)
@given(seeds, shapes, keeps)
def test_landmarks_are_those_of_a_slow_loop(seed, shape, keep):
    features, grid = patchy(seed, shape), shape[1:3]
    tokens = grid[0] * grid[1]
    count = kept_tokens(tokens, keep)
    assume(count < tokens)
    importance = np.random.default_rng(seed).normal(size=features.shape[:2]).astype(np.float32)
    merged = landmark(features, grid=grid, keep=keep, importance=importance)
    for tokens_of, view, scores in zip(merged, features, importance, strict=True):
        home, decisions = slow_landmark(view, scores, count)
        assume(decisions.clear)
        assert np.unique(home, return_inverse=True)[1].tolist() == tokens_of.members.tolist()
        for token in range(count):
            members = np.flatnonzero(tokens_of.members == token)
            np.testing.assert_allclose(tokens_of.features[token], view[members].mean(0), rtol=1e-5, atol=1e-6)


def test_importance_decides_among_what_is_equally_far():
    features = np.eye(6, dtype=np.float32)[None]
    importance = np.float32([[0, 5, 1, 4, 2, 3]])
    merged = landmark(features, grid=(2, 3), keep=0.5, importance=importance)[0]
    assert merged.members.tolist() == [0, 0, 0, 1, 0, 2]  # 1, 3 and 5; what is like none of them joins the first


def test_an_importance_of_another_shape_is_refused():
    with pytest.raises(BadInput, match=r"importance \[1, 5\]") as caught:
        landmark(np.ones((1, 6, 2), np.float32), grid=(2, 3), keep=0.5, importance=np.ones((1, 5), np.float32))
    assert caught.value.remedy == "pass one finite value of importance per token"

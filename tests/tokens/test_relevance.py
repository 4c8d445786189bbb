"""CDPruner against determinants of every candidate, VisionZip against a loop in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.tokens.features import Decisions, cosine, patchy
from vlm_edge.core.reduction import kept_tokens
from vlm_edge.errors import BadInput
from vlm_edge.tokens import DROPPED, cdpruner, reduce_tokens, visionzip
from vlm_edge.tokens.relevance import CONTEXTUAL_SHARE, LEAST_RELEVANCE, RIDGE, contextual_tokens, text_relevance

shapes = st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 5), st.integers(2, 12))
keeps = st.floats(0.05, 0.95)
seeds = st.integers(0, 2**32 - 1)


def scores_of(seed: int, features: np.ndarray) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=features.shape[:2]).astype(np.float32)


def slow_dpp(view: np.ndarray, scores: np.ndarray, count: int) -> tuple[list[int], Decisions]:
    """Each step tries every token and takes the one with the largest determinant of the kernel so far."""
    low, high = float(scores.min()), float(scores.max())
    quality = [LEAST_RELEVANCE + (1 - LEAST_RELEVANCE) * (float(s) - low) / (high - low or 1) for s in scores]
    quality = quality if high > low else [1.0] * len(scores)
    vectors = [[float(x) for x in token] for token in view]
    kernel = np.array(
        [
            [quality[i] * quality[j] * (cosine(a, b) + RIDGE * (i == j)) for j, b in enumerate(vectors)]
            for i, a in enumerate(vectors)
        ]
    )
    decisions, chosen = Decisions(), []
    for _ in range(count):
        values = {}
        for i in range(len(view)):
            if i not in chosen:
                sign, log = np.linalg.slogdet(kernel[np.ix_([*chosen, i], [*chosen, i])])
                values[i] = float(log) if sign > 0 else -np.inf
        chosen.append(decisions.largest(values))
    return sorted(chosen), decisions


@settings(max_examples=100, deadline=None)
@given(seeds, shapes, keeps)
def test_cdpruner_maximises_the_determinant_greedily(seed, shape, keep):
    features, grid = patchy(seed, shape), shape[1:3]
    tokens = grid[0] * grid[1]
    count = kept_tokens(tokens, keep)
    assume(count < tokens)
    scores = scores_of(seed, features)
    for kept, view, row in zip(
        cdpruner(features, grid=grid, keep=keep, relevance=scores), features, scores, strict=True
    ):
        expected, decisions = slow_dpp(view, row, count)
        # beyond the rank the gains are RIDGE against float32's rounding of cosines
        assume(decisions.margin > 1e-2)
        assert np.flatnonzero(kept.members != DROPPED).tolist() == expected
        np.testing.assert_array_equal(kept.features, view[expected])


def test_relevance_decides_and_repeats_are_passed_over():
    features = np.eye(4, dtype=np.float32)[[0, 0, 1, 2, 3, 3]][None]
    relevance = np.float32([[9, 8, 1, 7, 6, 0]])
    kept = cdpruner(features, grid=(2, 3), keep=0.5, relevance=relevance)[0]
    assert np.flatnonzero(kept.members != DROPPED).tolist() == [0, 3, 4]
    assert kept.positions.tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 1]]


def slow_visionzip(view: np.ndarray, attention: np.ndarray, count: int) -> tuple[list[int], Decisions]:
    decisions = Decisions()
    contextual = 0 if count == 1 else max(1, round(count * CONTEXTUAL_SHARE))
    ranked = sorted(range(len(view)), key=lambda i: (-float(attention[i]), i))
    dominant, rest = ranked[: count - contextual], sorted(ranked[count - contextual :])
    if not contextual:
        return [i if i in dominant else -1 for i in range(len(view))], decisions
    targets = [rest[j * len(rest) // contextual] for j in range(contextual)]
    home = list(range(len(view)))
    for i in rest:
        if i not in targets:
            likeness = {
                place: cosine(list(map(float, view[i])), list(map(float, view[t]))) for place, t in enumerate(targets)
            }
            home[i] = targets[decisions.largest(likeness)]
    firsts = {root: min(i for i, h in enumerate(home) if h == root) for root in set(home)}
    return [firsts[h] for h in home], decisions


@settings(max_examples=100, deadline=None)
@given(seeds, shapes, keeps)
def test_visionzip_keeps_and_merges_what_a_slow_loop_does(seed, shape, keep):
    features, grid = patchy(seed, shape), shape[1:3]
    tokens = grid[0] * grid[1]
    count = kept_tokens(tokens, keep)
    assume(count < tokens)
    attention = scores_of(seed, features)
    for kept, view, row in zip(
        visionzip(features, grid=grid, keep=keep, attention=attention), features, attention, strict=True
    ):
        home, decisions = slow_visionzip(view, row, count)
        assume(decisions.clear)
        roots = sorted({h for h in home if h >= 0})
        assert kept.members.tolist() == [roots.index(h) if h >= 0 else DROPPED for h in home]
        assert len(kept) == count
        for token in range(count):
            members = np.flatnonzero(kept.members == token)
            np.testing.assert_allclose(kept.features[token], view[members].mean(0), rtol=1e-5, atol=1e-6)


def test_visionzip_splits_as_its_paper_does():
    assert [contextual_tokens(kept) for kept in (64, 128, 192, 2, 1)] == [10, 20, 30, 1, 0]


@pytest.mark.parametrize(("method", "what"), [("cdpruner", "relevance to the question"), ("visionzip", "attention")])
def test_scores_are_needed_and_must_fit(method, what):
    features = np.ones((2, 6, 3), np.float32)
    with pytest.raises(BadInput, match=f"{what}, and none is given") as caught:
        reduce_tokens(method, features, grid=(2, 3), keep=0.5)
    assert caught.value.remedy.startswith("pass one value of")
    for scores in (np.ones((2, 5)), np.ones((1, 6)), np.full((2, 6), np.nan), np.full((2, 6), np.inf)):
        with pytest.raises(BadInput, match=what):
            reduce_tokens(method, features, grid=(2, 3), keep=0.5, scores=scores.astype(np.float32))


@pytest.mark.parametrize("method", ["cdpruner", "visionzip"])
@pytest.mark.parametrize("value", [0.0, 1.0, 3e38])
def test_equal_and_zero_tokens_single_tokens_and_a_keep_of_one(method, value):
    features = np.full((2, 12, 4), value, np.float32)
    scores = np.zeros((2, 12), np.float32)
    assert [len(t) for t in reduce_tokens(method, features, grid=(3, 4), keep=0.25, scores=scores)] == [3, 3]
    assert [len(t) for t in reduce_tokens(method, features, grid=(3, 4), keep=0.01, scores=scores)] == [1, 1]
    assert [len(t) for t in reduce_tokens(method, features, grid=(3, 4), keep=1.0, scores=scores)] == [12, 12]
    one = reduce_tokens(method, features[:, :1], grid=(1, 1), keep=0.5, scores=scores[:, :1])
    assert [t.members.tolist() for t in one] == [[0], [0]]


def test_relevance_to_a_text_is_the_mean_cosine_with_its_words():
    features, words = patchy(3, (2, 3, 4, 6)), patchy(4, (1, 2, 2, 6))[0]
    found = text_relevance(features, words)
    for view, token in np.ndindex(2, 12):
        cosines = [cosine(list(map(float, features[view, token])), list(map(float, word))) for word in words]
        assert found[view, token] == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)

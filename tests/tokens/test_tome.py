"""ToMe against lists of clusters in plain Python, and its schedule."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.tokens.features import Decisions, cosine, patchy
from vlm_edge.core.reduction import kept_tokens
from vlm_edge.errors import BadInput
from vlm_edge.tokens import reduce_tokens, tome
from vlm_edge.tokens.tome import MOST_SHARE, merge_schedule

shapes = st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 6), st.integers(2, 12))
keeps = st.floats(0.05, 1.0)
seeds = st.integers(0, 2**32 - 1)


def slow_tome(view: np.ndarray, schedule: tuple[int, ...]) -> tuple[list[int], Decisions]:
    """Each token's cluster by first member."""
    vectors = [[float(x) for x in token] for token in view]
    clusters = [[index] for index in range(len(vectors))]
    decisions = Decisions()
    for merges in schedule:
        means = [
            [math.fsum(vectors[m][d] for m in members) / len(members) for d in range(len(vectors[0]))]
            for members in clusters
        ]
        found = []
        for i in range(0, len(clusters), 2):
            values = {j: cosine(means[i], means[j]) for j in range(1, len(clusters), 2)}
            partner = decisions.largest(values)
            found.append((values[partner], i, partner))
        ranked = sorted(found, key=lambda pair: (-pair[0], pair[1]))
        if merges < len(ranked):
            decisions.margin = min(decisions.margin, ranked[merges - 1][0] - ranked[merges][0])
        for _, i, j in ranked[:merges]:
            clusters[j] += clusters[i]
        gone = {i for _, i, _ in ranked[:merges]}
        clusters = sorted((sorted(c) for i, c in enumerate(clusters) if i not in gone), key=min)
    home = [0] * len(vectors)
    for members in clusters:
        for member in members:
            home[member] = members[0]
    return home, decisions


@settings(max_examples=120, deadline=None)
@given(seeds, shapes, keeps, st.sampled_from([None, 6, 9]))
def test_merges_what_a_slow_loop_merges(seed, shape, keep, rounds):
    features, grid = patchy(seed, shape), shape[1:3]
    schedule = merge_schedule(grid[0] * grid[1], keep, rounds)
    for merged, view in zip(tome(features, grid=grid, keep=keep, rounds=rounds), features, strict=True):
        home, decisions = slow_tome(view, schedule)
        assume(decisions.clear)
        assert np.unique(home, return_inverse=True)[1].tolist() == merged.members.tolist()
        for token in range(len(merged)):
            members = np.flatnonzero(merged.members == token)
            assert merged.sizes[token] == len(members)
            np.testing.assert_allclose(merged.features[token], view[members].mean(0), rtol=1e-5, atol=1e-6)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400), st.floats(0.001, 1.0))
def test_a_schedule_ends_at_the_count_and_takes_little_at_a_time(tokens, keep):
    left = tokens
    for taken in merge_schedule(tokens, keep):
        assert 1 <= taken <= max(1, left * MOST_SHARE)
        left -= taken
    assert left == kept_tokens(tokens, keep)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400), st.floats(0.001, 1.0), st.integers(0, 5))
def test_a_number_of_rounds_is_kept_wherever_halving_allows_it(tokens, keep, spare):
    count = kept_tokens(tokens, keep)
    least, left = 0, tokens
    while left > count:
        left, least = left - left // 2, least + 1
    schedule = merge_schedule(tokens, keep, least + spare)
    assert len(schedule) <= least + spare
    assert tokens - sum(schedule) == count
    left = tokens
    for taken in schedule:
        assert 1 <= taken <= left // 2
        left -= taken


def test_the_schedules_of_the_docstring():
    assert merge_schedule(64, 0.5) == (8, 7, 6, 5, 4, 2)
    assert merge_schedule(64, 0.5, 2) == (19, 13)
    assert merge_schedule(64, 0.5, 1) == (32,)
    assert merge_schedule(64, 1.0) == ()


def test_too_few_rounds_are_refused_with_the_least():
    with pytest.raises(BadInput, match=r"1 round\(s\) cannot merge 64 tokens into 16") as caught:
        tome(np.ones((1, 64, 2), np.float32), grid=(8, 8), keep=0.25, rounds=1)
    assert caught.value.remedy == "allow 2 rounds or more"
    assert len(tome(np.ones((1, 64, 2), np.float32), grid=(8, 8), keep=0.25, rounds=2)[0]) == 16


def test_many_rounds_spare_a_lone_line_that_one_round_drowns():
    """Ten words of one kind in even columns of a background: one round to half forces each into its neighbour."""
    grid, letters = (8, 8), np.arange(0, 20, 2)
    features = np.tile(np.float32([1, 0, 0]), (1, 64, 1)) + np.random.default_rng(0).normal(0, 0.01, (1, 64, 3))
    features[0, letters] = [0, 1, 0]
    features = features.astype(np.float32)

    def drowned(rounds: int | None) -> int:
        merged = tome(features, grid=grid, keep=0.5, rounds=rounds)[0]
        ink = np.isin(np.arange(64), letters)
        mixed = [t for t in range(len(merged)) if len(set(ink[merged.members == t])) == 2]
        return sum(int(ink[merged.members == t].sum()) for t in mixed)

    assert drowned(1) == 10
    assert drowned(None) == 0


@settings(max_examples=40, deadline=None)
@given(seeds, shapes, keeps)
def test_sums_and_counts_are_kept(seed, shape, keep):
    features, grid = patchy(seed, shape), shape[1:3]
    for view, merged in zip(features, tome(features, grid=grid, keep=keep), strict=True):
        assert len(merged) == kept_tokens(len(view), keep)
        assert merged.sizes.sum() == len(view)
        firsts = [np.flatnonzero(merged.members == t)[0] for t in range(len(merged))]
        assert firsts == sorted(firsts)
        weighted = (merged.features.astype(np.float64) * merged.sizes[:, None]).sum(0)
        np.testing.assert_allclose(weighted, view.sum(0, dtype=np.float64), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [2.0**-100, 1.0, 2.0**120])
def test_the_scale_of_features_does_not_matter(scale):
    features = patchy(5, (2, 6, 6, 8))
    plain, scaled = (tome(f, grid=(6, 6), keep=0.4) for f in (features, features * np.float32(scale)))
    assert all(np.array_equal(a.members, b.members) for a, b in zip(plain, scaled, strict=True))
    assert all(np.isfinite(tokens.features).all() for tokens in scaled)


@pytest.mark.parametrize("method", ["tome", "divprune", "landmark"])
@pytest.mark.parametrize("value", [0.0, 1.0, 3e38])
def test_equal_tokens_are_reduced_to_the_count(method, value):
    features = np.full((1, 12, 4), value, np.float32)
    kept = reduce_tokens(method, features, grid=(3, 4), keep=0.25)[0]
    assert len(kept) == 3
    assert (kept.features == np.float32(value)).all()


@pytest.mark.parametrize("method", ["tome", "divprune", "landmark", "random", "downsample"])
def test_one_token_and_a_keep_of_less_than_one_token_leave_one(method):
    one = np.ones((2, 1, 3), np.float32)
    assert [len(tokens) for tokens in reduce_tokens(method, one, grid=(1, 1), keep=0.1)] == [1, 1]
    few = patchy(1, (1, 2, 3, 4))
    assert len(reduce_tokens(method, few, grid=(2, 3), keep=0.01)[0]) == 1


@pytest.mark.parametrize("method", ["tome", "divprune", "landmark", "random", "downsample"])
def test_a_keep_of_one_changes_nothing(method):
    features = patchy(2, (2, 3, 4, 5))
    for view, kept in enumerate(reduce_tokens(method, features, grid=(3, 4), keep=1.0)):
        np.testing.assert_array_equal(kept.features, features[view])
        assert kept.members.tolist() == list(range(12))

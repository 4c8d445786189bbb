"""Threshold merging against a plain-Python scan, its properties, and the dispatch by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.tokens.features import cosine, patchy
from vlm_edge.errors import BadInput
from vlm_edge.tokens import REDUCERS, TokenSet, reduce_tokens, threshold_merge
from vlm_edge.tokens.positions import row_order

# The scan sums float32, the reference float64: their cosines agree to about 1e-6, so closer decisions are not compared.
UNDECIDED = 1e-5

shapes = st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7), st.integers(1, 12))
seeds = st.integers(0, 2**32 - 1)
thresholds = st.floats(0.3, 0.99)


def slow_scan(tokens: np.ndarray, grid: tuple[int, int], threshold: float) -> tuple[list[int], float]:
    """Clusters of one view as each token's first member, and by how little the closest decision was made."""
    rows, cols = grid
    vectors = [[float(x) for x in token] for token in tokens]
    clusters: dict[int, list[int]] = {}
    home: list[int] = []
    margin = math.inf

    def mean(root: int) -> list[float]:
        members = clusters[root]
        return [math.fsum(vectors[m][d] for m in members) / len(members) for d in range(len(vectors[0]))]

    for index in range(rows * cols):
        row, col = divmod(index, cols)
        near = ([home[index - 1]] if col else []) + ([home[index - cols]] if row else [])
        scores = [(cosine(vectors[index], mean(root)), root) for root in near]
        margin = min([margin, *(abs(score - threshold) for score, _ in scores)])
        passing = [pair for pair in scores if pair[0] > threshold]
        if not passing:
            clusters[index] = [index]
            home.append(index)
            continue
        if len({root for _, root in passing}) == 2:
            margin = min(margin, abs(passing[0][0] - passing[1][0]))
        root = max(passing, key=lambda pair: pair[0])[1]
        clusters[root].append(index)
        home.append(root)
        if len({root for _, root in passing}) == 2:
            first, second = sorted(root for _, root in passing)
            between = cosine(mean(first), mean(second))
            margin = min(margin, abs(between - threshold))
            if between > threshold:
                clusters[first] += clusters.pop(second)
                home = [first if root == second else root for root in home]
    return home, margin


def connected(cells: set[tuple[int, int]]) -> bool:
    reached, frontier = set(), [next(iter(cells))]
    while frontier:
        row, col = frontier.pop()
        if (row, col) in cells and (row, col) not in reached:
            reached.add((row, col))
            frontier += [(row + 1, col), (row - 1, col), (row, col + 1), (row, col - 1)]
    return reached == cells


@settings(max_examples=120, deadline=None)
@given(seeds, shapes, thresholds)
def test_clusters_are_those_of_a_slow_scan(seed, shape, threshold):
    features, grid = patchy(seed, shape), shape[1:3]
    expected = [slow_scan(view, grid, threshold) for view in features]
    assume(all(margin > UNDECIDED for _, margin in expected))
    for merged, (home, _) in zip(threshold_merge(features, grid=grid, threshold=threshold), expected, strict=True):
        roots = sorted(set(home))
        assert merged.members.tolist() == [roots.index(root) for root in home]


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_larger_grids_are_scanned_alike(threshold):
    features = patchy(round(100 * threshold), (20, 9, 8, 6))
    merged = threshold_merge(features, grid=(9, 8), threshold=threshold)
    compared = 0
    for tokens, view in zip(merged, features, strict=True):
        home, margin = slow_scan(view, (9, 8), threshold)
        if margin > UNDECIDED:
            assert np.unique(home, return_inverse=True)[1].tolist() == tokens.members.tolist()
            compared += 1
    assert compared >= 15


@settings(max_examples=80, deadline=None)
@given(seeds, shapes, thresholds)
def test_merged_tokens_are_the_means_of_their_members(seed, shape, threshold):
    features, (rows, cols) = patchy(seed, shape), shape[1:3]
    for view, merged in enumerate(threshold_merge(features, grid=(rows, cols), threshold=threshold)):
        assert merged.sizes.sum() == rows * cols
        assert np.isfinite(merged.features).all()
        assert np.isfinite(merged.positions).all()
        firsts = []
        for token in range(len(merged)):
            members = np.flatnonzero(merged.members == token)
            firsts.append(members[0])
            assert merged.sizes[token] == len(members)
            assert connected({divmod(int(m), cols) for m in members})
            np.testing.assert_allclose(merged.features[token], features[view, members].mean(0), rtol=1e-5, atol=1e-6)
            where = [view, np.mean(members // cols), np.mean(members % cols)]
            np.testing.assert_allclose(merged.positions[token], where, rtol=1e-6)
        assert firsts == sorted(firsts)
        weighted = (merged.features * merged.sizes[:, None]).sum(0)
        np.testing.assert_allclose(weighted, features[view].sum(0), rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(seeds, shapes, thresholds)
def test_views_do_not_touch_each_other(seed, shape, threshold):
    features, grid = patchy(seed, shape), shape[1:3]
    order = np.random.default_rng(seed).permutation(len(features))
    together = threshold_merge(features, grid=grid, threshold=threshold)
    for view, shuffled in zip(order, threshold_merge(features[order], grid=grid, threshold=threshold), strict=True):
        assert np.array_equal(shuffled.members, together[view].members)
        assert np.array_equal(shuffled.features, together[view].features)
        assert np.array_equal(shuffled.positions[:, 1:], together[view].positions[:, 1:])


@settings(max_examples=30, deadline=None)
@given(shapes, st.floats(0.01, 0.999), st.floats(2.0**-100, 2.0**127, width=32))
def test_constant_input_becomes_one_token_per_view(shape, threshold, value):
    """Up to values whose squares and sums would overflow float32."""
    views, rows, cols, channels = shape
    features = np.full((views, rows * cols, channels), value, np.float32)
    for merged in threshold_merge(features, grid=(rows, cols), threshold=threshold):
        assert merged.sizes.tolist() == [rows * cols]
        assert (merged.features == np.float32(value)).all()


def test_constant_merging_is_idempotent():
    once = threshold_merge(np.ones((2, 36, 5), np.float32), grid=(6, 6))
    twice = threshold_merge(np.stack([tokens.features for tokens in once]), grid=(1, 1))
    assert all(np.array_equal(a.features, b.features) for a, b in zip(once, twice, strict=True))


def test_zero_vectors_stay_apart():
    features = np.zeros((2, 9, 4), np.float32)
    assert [len(tokens) for tokens in threshold_merge(features, grid=(3, 3), threshold=0.01)] == [9, 9]
    features[1, 4] = 1
    assert [len(tokens) for tokens in threshold_merge(features, grid=(3, 3), threshold=0.01)] == [9, 9]


def test_opposite_vectors_stay_apart():
    features = np.where(np.indices((4, 4)).sum(0).reshape(1, 16, 1) % 2, -1, 1).repeat(3, 2).astype(np.float32)
    assert len(threshold_merge(features, grid=(4, 4), threshold=0.01)[0]) == 16


def test_a_slow_turn_does_not_chain():
    angles = np.linspace(0, np.pi, 64)
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)[None].astype(np.float32)
    limit = 0.95
    assert np.cos(angles[1]) > limit, "every neighbour is alike enough to chain"
    merged = threshold_merge(features, grid=(1, 64), threshold=limit)[0]
    spans = merged.sizes * angles[1]
    assert len(merged) >= 4
    # The end of a cluster lies within acos(limit) of its mean, which lies in the middle of an even turn.
    assert spans.max() <= 2 * np.arccos(limit) + 2 * angles[1]


def test_a_background_around_an_object_is_one_token():
    rows, cols = 6, 7
    features = np.tile(np.float32([1, 0]), (1, rows * cols, 1)).reshape(1, rows, cols, 2)
    features[0, 1:5, 2:5] = [0, 1]
    merged = threshold_merge(features.reshape(1, -1, 2), grid=(rows, cols), threshold=0.9)[0]
    assert merged.sizes.tolist() == [rows * cols - 12, 12]
    assert merged.positions[1].tolist() == [0, 2.5, 3]


def test_arms_that_meet_late_unite():
    """A U: its arms start apart and are told to be one only by the row that joins them."""
    picture = np.array([[1, 0, 1], [1, 0, 1], [1, 1, 1]])
    features = np.eye(2, dtype=np.float32)[picture.reshape(-1)][None]
    merged = threshold_merge(features, grid=(3, 3), threshold=0.9)[0]
    assert merged.members.tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 0]


def test_a_threshold_of_one_keeps_everything():
    features = np.ones((2, 6, 3), np.float32)
    for view, kept in enumerate(threshold_merge(features, grid=(2, 3), threshold=1.0)):
        assert np.array_equal(kept.features, features[view])
        assert kept.members.tolist() == [0, 1, 2, 3, 4, 5]
        assert kept.sizes.tolist() == [1] * 6
        assert kept.positions.tolist() == [[view, r, c] for r in range(2) for c in range(3)]


def test_tokens_that_merge_with_none_are_unchanged_and_the_input_is_not_written_to():
    features = patchy(7, (3, 6, 6, 9))
    before = features.copy()
    for view, merged in enumerate(threshold_merge(features, grid=(6, 6), threshold=0.9)):
        alone = merged.sizes == 1
        assert np.array_equal(merged.features[alone], features[view][alone[merged.members]])
    assert np.array_equal(features, before)


def test_the_scale_of_the_features_does_not_matter():
    features = patchy(3, (2, 6, 6, 8))
    plain = threshold_merge(features, grid=(6, 6), threshold=0.9)
    for factor in (2.0**-80, 2.0**100):
        scaled = threshold_merge(features * np.float32(factor), grid=(6, 6), threshold=0.9)
        for a, b in zip(plain, scaled, strict=True):
            assert np.array_equal(a.members, b.members)
            assert np.array_equal(a.features * np.float32(factor), b.features)


def test_no_views_give_no_sets():
    assert threshold_merge(np.zeros((0, 4, 3), np.float32), grid=(2, 2)) == ()


@pytest.mark.parametrize("method", REDUCERS)
def test_every_reducer_keeps_its_books(method):
    features = patchy(11, (3, 5, 4, 6))
    scores = features[..., 0].copy()
    sets = reduce_tokens(method, features, grid=(5, 4), threshold=0.9, keep=0.4, seed=5, scores=scores)
    again = reduce_tokens(method, features, grid=(5, 4), threshold=0.9, keep=0.4, seed=5, scores=scores)
    assert len(sets) == 3
    for tokens, repeat in zip(sets, again, strict=True):
        check_types(tokens)
        went = tokens.members[tokens.members >= 0]
        assert np.array_equal(np.bincount(went, minlength=len(tokens)), tokens.sizes)
        assert np.array_equal(tokens.features, repeat.features)
        assert np.array_equal(tokens.members, repeat.members)


def check_types(tokens: TokenSet) -> None:
    count = len(tokens)
    assert (tokens.features.dtype, tokens.features.shape) == (np.float32, (count, 6))
    assert (tokens.sizes.dtype, tokens.sizes.shape) == (np.int32, (count,))
    assert (tokens.positions.dtype, tokens.positions.shape) == (np.float32, (count, 3))
    assert (tokens.members.dtype, tokens.members.shape) == (np.int32, (20,))


def test_an_unknown_reducer_names_the_nearest_and_all():
    with pytest.raises(BadInput, match="'treshold'") as caught:
        reduce_tokens("treshold", np.ones((1, 4, 2), np.float32), grid=(2, 2))
    names = "none, threshold, random, downsample, tome, divprune, cdpruner, visionzip, landmark"
    assert caught.value.remedy == f"did you mean threshold? choose one of {names}"
    with pytest.raises(BadInput) as caught:
        reduce_tokens("xyz", np.ones((1, 4, 2), np.float32), grid=(2, 2))
    assert caught.value.remedy == f"choose one of {names}"


@pytest.mark.parametrize("value", [0.0, -0.1, 1.0001, math.nan, math.inf])
@pytest.mark.parametrize("method", REDUCERS)
def test_fractions_out_of_range_are_refused_by_every_reducer(method, value):
    features = np.ones((1, 4, 2), np.float32)
    with pytest.raises(BadInput, match="threshold"):
        reduce_tokens(method, features, grid=(2, 2), threshold=value)
    with pytest.raises(BadInput, match="keep"):
        reduce_tokens(method, features, grid=(2, 2), keep=value)


def test_threshold_merge_alone_refuses_a_bad_threshold():
    with pytest.raises(BadInput, match=r"threshold is 1\.5"):
        threshold_merge(np.ones((1, 4, 2), np.float32), grid=(2, 2), threshold=1.5)


@pytest.mark.parametrize("method", REDUCERS)
@pytest.mark.parametrize(
    ("features", "grid", "message"),
    [
        (np.ones((4, 2), np.float32), (2, 2), r"float32 \[4, 2\]"),
        (np.ones((1, 4, 2), np.float16), (2, 2), "float16"),
        (np.ones((1, 5, 2), np.float32), (2, 2), "5 tokens"),
        (np.ones((1, 4, 0), np.float32), (2, 2), "0 channels"),
        (np.ones((1, 4, 2), np.float32), (-2, -2), "grid of -2 x -2"),
        (np.full((1, 4, 2), np.nan, np.float32), (2, 2), "NaN"),
        (np.full((1, 4, 2), -np.inf, np.float32), (2, 2), "infinite"),
    ],
)
def test_features_that_cannot_be_reduced_are_refused(method, features, grid, message):
    with pytest.raises(BadInput, match=message):
        reduce_tokens(method, features, grid=grid)


@settings(max_examples=60, deadline=None)
@given(
    seeds, st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), thresholds, st.sampled_from(["threshold", "random"])
)
def test_row_order_reads_across_views(seed, views, rows, cols, threshold, method):
    features = patchy(seed, (views, rows, cols, 4))
    sets = reduce_tokens(method, features, grid=(rows, cols), threshold=threshold, keep=0.6)
    expected, starts = [], np.cumsum([0, *(len(s) for s in sets)])
    for row in range(rows):
        for view, tokens in enumerate(sets):
            for col in range(cols):
                token = tokens.members[row * cols + col]
                place = starts[view] + token
                if token >= 0 and place not in expected:
                    expected.append(place)
    assert row_order(sets, (rows, cols)).tolist() == expected
    assert row_order(sets[:1], (rows, cols)).tolist() == list(range(len(sets[0])))

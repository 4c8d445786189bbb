"""A budget shared over views: totals, bounds and proportions, and each view as it would be by itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_edge.core.reduction import kept_tokens
from vlm_edge.errors import BadInput
from vlm_edge.tokens.budget import SHARED, reduce_image, shared_counts
from vlm_edge.tokens.reduce import reduce_tokens

GRID = (6, 8)
VIEWS = st.lists(st.integers(1, 64), min_size=1, max_size=9)


@settings(deadline=None)
@given(VIEWS, st.integers(0, 10_000))
def test_all_of_the_budget_is_shared_out(distinct: list[int], extra: int) -> None:
    total = len(distinct) + extra % (64 * len(distinct) - len(distinct) + 1)
    counts = shared_counts(distinct, places=64, total=total)
    assert sum(counts) == total
    assert all(1 <= count <= 64 for count in counts)
    for one, more in zip(distinct, counts, strict=True):
        for other, fewer in zip(distinct, counts, strict=True):
            assert one > other or more <= fewer + 1 or one == other


def test_in_proportion() -> None:
    assert shared_counts([10, 30], places=64, total=32) == (8, 24)
    assert shared_counts([64, 64, 64], places=64, total=96) == (32, 32, 32)
    assert shared_counts([1, 64], places=64, total=80) == (16, 64)


def pictures(seed: int = 0) -> np.ndarray:
    """A full view, an empty one and one that is half full: [3, 48, 16]."""
    rng = np.random.default_rng(seed)
    views = rng.normal(size=(3, 48, 16)).astype(np.float32)
    views[1] = views[1, :1] + 0.01 * views[1]
    views[2, 24:] = views[2, 24] + 0.01 * views[2, 24:]
    return views


@pytest.mark.parametrize("method", sorted(SHARED))
@pytest.mark.parametrize("keep", [0.1, 0.25, 0.5])
def test_full_views_keep_more_and_the_total_is_as_ever(method: str, keep: float) -> None:
    features = pictures()
    scores = np.random.default_rng(1).uniform(0, 1, (3, 48)).astype(np.float32)
    sets = reduce_image(method, features, grid=GRID, keep=keep, scores=scores)
    counts = [len(tokens) for tokens in sets]
    assert sum(counts) == 3 * kept_tokens(48, keep)
    assert counts[0] > counts[2] > counts[1]
    for view, tokens in enumerate(sets):
        assert (tokens.positions[:, 0] == view).all()
        own = features[view : view + 1]
        (alone,) = reduce_tokens(method, own, grid=GRID, keep=counts[view] / 48, scores=scores[view : view + 1])
        np.testing.assert_array_equal(tokens.features, alone.features)
        np.testing.assert_array_equal(tokens.members, alone.members)


@pytest.mark.parametrize("method", ["none", "threshold", "random", "downsample"])
def test_other_methods_are_left_as_they_are(method: str) -> None:
    features = pictures()
    for found, expected in zip(
        reduce_image(method, features, grid=GRID, keep=0.5), reduce_tokens(method, features, grid=GRID, keep=0.5),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(found.features, expected.features)
        np.testing.assert_array_equal(found.positions, expected.positions)


def test_one_view_has_all_of_the_budget() -> None:
    features = pictures()[:1]
    (found,), (expected,) = (one("tome", features, grid=GRID, keep=0.4) for one in (reduce_image, reduce_tokens))
    np.testing.assert_array_equal(found.features, expected.features)


def test_bad_features_are_refused() -> None:
    features = pictures()
    features[1, 3, 2] = np.nan
    with pytest.raises(BadInput, match="NaN"):
        reduce_image("tome", features, grid=GRID, keep=0.5)
    with pytest.raises(BadInput, match="keep"):
        reduce_image("tome", pictures(), grid=GRID, keep=0.0)

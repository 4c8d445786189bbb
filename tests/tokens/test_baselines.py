"""The baselines against plain loops and against PyTorch's adaptive pooling."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_edge.errors import BadInput
from vlm_edge.tokens import DROPPED, downsample, random_keep
from vlm_edge.tokens.baselines import kept_tokens, pooled_grid

grids = st.tuples(st.integers(1, 12), st.integers(1, 12))
keeps = st.floats(0.01, 1.0)
seeds = st.integers(0, 2**32 - 1)


def noise(seed: int, views: int, grid: tuple[int, int], channels: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((views, grid[0] * grid[1], channels)).astype(np.float32)


def slow_pool(view: np.ndarray, shape: tuple[int, int]) -> tuple[list[np.ndarray], list[tuple[float, float]]]:
    """Adaptive average pooling of [R, C, D]: features and centres of the pools in raster order."""
    rows, cols, _ = view.shape
    features, centres = [], []
    for i in range(shape[0]):
        for j in range(shape[1]):
            down = range(math.floor(i * rows / shape[0]), math.ceil((i + 1) * rows / shape[0]))
            across = range(math.floor(j * cols / shape[1]), math.ceil((j + 1) * cols / shape[1]))
            cells = [(r, c) for r in down for c in across]
            features.append(sum(view[r, c].astype(np.float64) for r, c in cells) / len(cells))
            centres.append((sum(down) / len(down), sum(across) / len(across)))
    return features, centres


@pytest.mark.parametrize(
    ("tokens", "keep", "count"),
    [(64, 0.5, 32), (64, 0.25, 16), (100, 0.29, 29), (64, 0.3, 19), (64, 1.0, 64), (64, 1e-9, 1), (1, 0.5, 1)],
)
def test_kept_tokens_rounds_down_but_never_to_none(tokens, keep, count):
    assert kept_tokens(tokens, keep) == count


@settings(max_examples=200, deadline=None)
@given(grids, keeps)
def test_no_grid_within_the_budget_is_larger(grid, keep):
    rows, cols = pooled_grid(grid, keep)
    budget = max(1, keep * grid[0] * grid[1] + 1e-9)
    sizes = [r * c for r in range(1, grid[0] + 1) for c in range(1, grid[1] + 1) if r * c <= budget]
    assert rows <= grid[0]
    assert cols <= grid[1]
    assert rows * cols == max(sizes)


@pytest.mark.parametrize(
    ("grid", "keep", "shape"),
    [
        ((8, 8), 0.25, (4, 4)),
        ((8, 8), 0.5, (4, 8)),
        ((24, 24), 0.5, (16, 18)),
        ((8, 4), 0.25, (4, 2)),
        ((1, 9), 0.4, (1, 3)),
        ((8, 8), 1.0, (8, 8)),
    ],
)
def test_of_equal_grids_the_squarest_pools_win(grid, keep, shape):
    assert pooled_grid(grid, keep) == shape


@settings(max_examples=60, deadline=None)
@given(seeds, grids, keeps)
def test_downsample_is_adaptive_average_pooling(seed, grid, keep):
    features = noise(seed, 2, grid)
    shape = pooled_grid(grid, keep)
    for view, pooled in enumerate(downsample(features, grid=grid, keep=keep)):
        means, centres = slow_pool(features[view].reshape(*grid, -1), shape)
        np.testing.assert_allclose(pooled.features, means, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(pooled.positions, [(view, *centre) for centre in centres], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(seeds, grids, keeps)
def test_downsample_counts_every_token_once_in_a_pool_that_averages_it(seed, grid, keep):
    features = noise(seed, 1, grid, channels=grid[0] * grid[1])
    features[0] = np.eye(grid[0] * grid[1])  # so that a pooled feature shows which tokens went into it
    pooled = downsample(features, grid=grid, keep=keep)[0]
    assert pooled.sizes.sum() == grid[0] * grid[1]
    assert pooled.sizes.min() >= 1
    assert np.array_equal(np.bincount(pooled.members, minlength=len(pooled)), pooled.sizes)
    assert all(pooled.features[pool, token] > 0 for token, pool in enumerate(pooled.members))
    shape = pooled_grid(grid, keep)
    for token, pool in enumerate(pooled.members):
        for axis in range(2):
            centre = Fraction(2 * divmod(token, grid[1])[axis] + 1, 2 * grid[axis])
            assert divmod(pool, shape[1])[axis] == math.floor(centre * shape[axis])


@settings(max_examples=40, deadline=None)
@given(seeds, st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(1, 3))
def test_whole_pools_preserve_the_weighted_sum(seed, shape, factor):
    grid = shape[0] * factor, shape[1] * factor
    features = noise(seed, 2, grid)
    for view, pooled in enumerate(downsample(features, grid=grid, keep=1 / factor**2)):
        weighted = (pooled.features * pooled.sizes[:, None]).sum(0)
        if pooled_grid(grid, 1 / factor**2) == shape:
            assert (pooled.sizes == factor**2).all()
            np.testing.assert_allclose(weighted, features[view].sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grid", [(8, 8), (24, 24), (7, 5), (3, 11)])
@pytest.mark.parametrize("keep", [1.0, 0.75, 0.5, 0.3, 0.1])
def test_downsample_equals_torch(grid, keep):
    torch = pytest.importorskip("torch")
    features = noise(1, 3, grid)
    maps = torch.from_numpy(features).reshape(3, *grid, -1).permute(0, 3, 1, 2)
    expected = torch.nn.functional.adaptive_avg_pool2d(maps, pooled_grid(grid, keep)).flatten(2).transpose(1, 2)
    got = np.stack([pooled.features for pooled in downsample(features, grid=grid, keep=keep)])
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_downsample_to_everything_changes_nothing():
    features = noise(2, 2, (3, 4))
    for view, kept in enumerate(downsample(features, grid=(3, 4), keep=1.0)):
        assert np.array_equal(kept.features, features[view])
        assert kept.members.tolist() == list(range(12))


def test_downsample_does_not_overflow():
    features = np.full((1, 16, 2), 3e38, np.float32)
    assert np.isfinite(downsample(features, grid=(4, 4), keep=0.1)[0].features).all()


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 4), grids, keeps)
def test_random_keep_keeps_that_many_in_order_where_they_were(seed, views, grid, keep):
    features = noise(seed, views, grid)
    for view, kept in enumerate(random_keep(features, grid=grid, keep=keep, seed=seed)):
        chosen = np.flatnonzero(kept.members != DROPPED)
        assert len(kept) == max(1, math.floor(keep * grid[0] * grid[1] + 1e-9))
        assert kept.members[chosen].tolist() == list(range(len(kept)))
        assert kept.sizes.tolist() == [1] * len(kept)
        assert np.array_equal(kept.features, features[view, chosen])
        assert kept.positions.tolist() == [[view, c // grid[1], c % grid[1]] for c in chosen]


def test_random_keep_differs_between_views_and_seeds_and_is_fair():
    features = noise(0, 6, (8, 8))
    choices = [
        tuple(np.flatnonzero(kept.members != DROPPED))
        for seed in range(100)
        for kept in random_keep(features, grid=(8, 8), keep=0.5, seed=seed)
    ]
    assert len(set(choices)) == 600
    counts = np.bincount(np.concatenate(choices), minlength=64)
    # 600 draws at one half: the standard deviation is 12.2.
    assert abs(counts - 300).max() < 5 * 12.2


def test_random_keep_does_not_depend_on_how_many_views_there_are():
    features = noise(0, 3, (4, 4))
    alone = random_keep(features[:1], grid=(4, 4), keep=0.5, seed=9)[0]
    assert np.array_equal(alone.members, random_keep(features, grid=(4, 4), keep=0.5, seed=9)[0].members)


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.5, math.nan])
def test_a_keep_out_of_range_is_refused(keep):
    features = noise(0, 1, (2, 2))
    with pytest.raises(BadInput, match="keep"):
        random_keep(features, grid=(2, 2), keep=keep, seed=0)
    with pytest.raises(BadInput, match="keep"):
        downsample(features, grid=(2, 2), keep=keep)


def test_a_negative_seed_is_refused():
    with pytest.raises(BadInput, match="seed is -1"):
        random_keep(noise(0, 1, (2, 2)), grid=(2, 2), keep=0.5, seed=-1)

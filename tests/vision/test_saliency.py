"""Saliency against a double loop over cells, and what it promises about text and edges."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_edge.vision import saliency


def slow_lost(gray: np.ndarray, cell_px: int) -> np.ndarray:
    """Lost variation cell by cell, pixel by pixel; a pixel owns the step to its right and the step below it."""
    height, width = gray.shape
    out = np.zeros((-(-height // cell_px), -(-width // cell_px)))
    for row in range(out.shape[0]):
        for col in range(out.shape[1]):
            right, below = [], []
            for y in range(row * cell_px, min((row + 1) * cell_px, height)):
                for x in range(col * cell_px, min((col + 1) * cell_px, width)):
                    right.append(int(gray[y, x + 1]) - int(gray[y, x]) if x + 1 < width else 0)
                    below.append(int(gray[y + 1, x]) - int(gray[y, x]) if y + 1 < height else 0)
            lost = [sum(map(abs, steps)) - abs(sum(steps)) for steps in (right, below)]
            out[row, col] = sum(lost) / cell_px**2
    return out


def slow_detail(gray: np.ndarray, cell_px: int) -> np.ndarray:
    """Contrast times the fourth root of the lost variation above the grain, cell by cell."""
    lost = slow_lost(gray, cell_px)
    grain = saliency.NOISE_FACTOR * sorted(lost.ravel())[lost.size // 2]
    if lost.size % 2 == 0:
        grain = saliency.NOISE_FACTOR * sum(sorted(lost.ravel())[lost.size // 2 - 1 : lost.size // 2 + 1]) / 2
    out = np.zeros_like(lost)
    for row, col in np.ndindex(*lost.shape):
        cell = gray[row * cell_px : (row + 1) * cell_px, col * cell_px : (col + 1) * cell_px]
        out[row, col] = (int(cell.max()) - int(cell.min())) * max(0.0, lost[row, col] - grain) ** 0.25
    return out


def pages(seed: int, height: int, width: int) -> np.ndarray:
    """Noise in one corner of a flat image, so that the median does not swallow it."""
    rng = np.random.default_rng(seed)
    gray = np.full((height, width), 180, np.uint8)
    corner = gray[: rng.integers(1, height + 1), : rng.integers(1, width + 1)]
    corner[:] = rng.integers(0, 256, corner.shape, np.uint8)
    return gray


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.integers(1, 9))
def test_equals_a_double_loop(seed, height, width, cell_px):
    gray = pages(seed, height, width)
    lost, detail = saliency.lost_variation(gray, cell_px=cell_px), saliency.detail(gray, cell_px=cell_px)
    assert lost.dtype == detail.dtype == np.float32
    np.testing.assert_allclose(lost, slow_lost(gray, cell_px), rtol=1e-6)
    # The fourth root makes much of float32's rounding where a cell is hardly above the grain: 1e-5 ** 0.25 * 255 = 14.
    np.testing.assert_allclose((detail / 255) ** 4, (slow_detail(gray, cell_px) / 255) ** 4, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("extra_px", [-1, 0, 1, 5])
def test_the_seams_between_strips_do_not_show(extra_px, monkeypatch):
    cell_px = 3
    monkeypatch.setattr(saliency, "STRIP_PIXELS", 10 * cell_px * 8)
    height = 2 * 8 * cell_px + extra_px
    gray = np.random.default_rng(extra_px + 1).integers(0, 256, (height, 10), np.uint8)
    np.testing.assert_allclose(saliency.lost_variation(gray, cell_px=cell_px), slow_lost(gray, cell_px), rtol=1e-6)


def test_the_height_of_a_strip_changes_nothing(monkeypatch):
    gray = np.random.default_rng(0).integers(0, 256, (50, 33), np.uint8)
    whole = saliency.lost_variation(gray, cell_px=4)
    monkeypatch.setattr(saliency, "STRIP_PIXELS", 1)
    assert np.array_equal(saliency.lost_variation(gray, cell_px=4), whole)


@pytest.mark.parametrize("size", [(900, 1600), (300, 6000), (3000, 500)])
def test_memory_is_that_of_a_strip(size):
    """An image that is wide and low must not cost more for a pixel than one that is high: the plan counts pixels."""
    gray = pages(1, *size)
    tracemalloc.start()
    saliency.detail(gray, cell_px=7)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 4 * saliency.STRIP_PIXELS < peak < 18 * saliency.STRIP_PIXELS


def test_a_flat_image_scores_nothing():
    assert not saliency.detail(np.full((30, 50), 200, np.uint8), cell_px=8).any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(0, 255), st.integers(0, 255), st.integers(0, 20), st.booleans())
def test_a_step_edge_scores_nothing_however_soft(at, low, high, ramp_px, across):
    profile = np.interp(np.arange(60), [at, at + ramp_px + 0.5], [low, high])
    gray = np.tile(profile.astype(np.uint8), (40, 1))
    assert not saliency.detail(gray if across else gray.T, cell_px=8).any()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_negatives_and_transposes_score_alike(seed):
    gray = pages(seed, 32, 24)
    score = saliency.detail(gray, cell_px=8)
    np.testing.assert_array_equal(saliency.detail(255 - gray, cell_px=8), score)
    np.testing.assert_array_equal(saliency.detail(np.ascontiguousarray(gray.T), cell_px=8), score.T)


def test_strokes_outscore_the_edge_of_a_shape_of_the_same_contrast():
    gray = np.full((64, 128), 255, np.uint8)
    gray[:, 80:] = 0
    gray[16:32, 8:40:4] = 0
    score = saliency.detail(gray, cell_px=8)
    assert score[2:4, 1:5].min() > 20
    assert not score[:, 8:].any()


def test_the_sums_of_a_large_cell_do_not_wrap():
    stripes = np.tile(np.array([0, 255], np.uint8), (256, 128))
    score = saliency.lost_variation(stripes, cell_px=256)
    assert score[0, 0] == pytest.approx(256 * (255 * 255 - 255) / 256**2)

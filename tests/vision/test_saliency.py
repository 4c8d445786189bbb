"""Saliency against a double loop over cells, and what it promises about text and edges."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlm_edge.errors import BadInput
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
    monkeypatch.setattr(saliency, "STRIP_PX", 10 * cell_px * 8)
    height = 2 * 8 * cell_px + extra_px
    gray = np.random.default_rng(extra_px + 1).integers(0, 256, (height, 10), np.uint8)
    np.testing.assert_allclose(saliency.lost_variation(gray, cell_px=cell_px), slow_lost(gray, cell_px), rtol=1e-6)


def test_the_height_of_a_strip_changes_nothing(monkeypatch):
    gray = np.random.default_rng(0).integers(0, 256, (50, 33), np.uint8)
    whole = saliency.lost_variation(gray, cell_px=4)
    monkeypatch.setattr(saliency, "STRIP_PX", 1)
    assert np.array_equal(saliency.lost_variation(gray, cell_px=4), whole)


@pytest.mark.parametrize("size", [(900, 1600), (300, 6000), (3000, 500)])
def test_memory_is_that_of_a_strip(size):
    """An image that is wide and low must not cost more for a pixel than one that is high: the plan counts pixels."""
    gray = pages(1, *size)
    tracemalloc.start()
    saliency.detail(gray, cell_px=7)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 4 * saliency.STRIP_PX < peak < 18 * saliency.STRIP_PX


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


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 40), st.integers(1, 9), st.data())
def test_an_image_in_bands_scores_as_in_one_piece(seed, height, width, cell_px, data):
    gray = pages(seed, height, width)
    cuts = sorted(data.draw(st.sets(st.integers(1, height - 1), max_size=5))) if height > 1 else []
    bands = np.split(gray, cuts)
    np.testing.assert_array_equal(
        saliency.detail_of_bands(iter(bands), cell_px=cell_px), saliency.detail(gray, cell_px=cell_px)
    )


def test_colours_count_by_their_brightness():
    rgb = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    gray = np.asarray(Image.fromarray(rgb).convert("L"))
    np.testing.assert_array_equal(
        saliency.detail_of_bands([rgb[:11], rgb[11:]], cell_px=6), saliency.detail(gray, cell_px=6)
    )


def test_memory_is_that_of_a_strip_and_not_of_the_image(monkeypatch):
    """8 bands that are made on demand: the peak of 4 times as many is the same."""

    def peak(bands: int) -> int:
        tracemalloc.start()
        saliency.detail_of_bands((np.zeros((256, 4096, 3), np.uint8) for _ in range(bands)), cell_px=32)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    monkeypatch.setattr(saliency, "STRIP_PX", 1 << 18)
    assert peak(32) < 1.2 * peak(8)


class Shrinking:
    """Mean of the red channel in each cell and the cells beside it: a network that sees 2 cells to each side."""

    def __init__(self, stride_px: int) -> None:
        self.stride_px = stride_px
        self.shapes: set[tuple[int, ...]] = set()

    def run(self, pixels: np.ndarray) -> np.ndarray:
        self.shapes.add(pixels.shape)
        count, _, height, width = pixels.shape
        s = self.stride_px
        cells = pixels[:, 0].reshape(count, height // s, s, width // s, s).mean((2, 4))
        padded = np.pad(cells, ((0, 0), (2, 2), (2, 2)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
        return windows.mean((3, 4)).astype(np.float32)


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (640, 96), (1100, 700), (513, 1)])
@pytest.mark.parametrize("stride_px", [8, 16])
def test_a_network_on_blocks_sees_what_it_would_see_at_once(size, stride_px):
    rgb = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    runner = Shrinking(stride_px)
    found = saliency.cnn(rgb, runner, cell_px=stride_px)
    halo_px = saliency.HALO_PX
    pad = [(halo_px, halo_px + -side % stride_px) for side in size]
    whole = np.pad(rgb, (*pad, (0, 0)), mode="edge").transpose(2, 0, 1)[None].astype(np.float32) / 255
    halo = halo_px // stride_px
    np.testing.assert_allclose(found, Shrinking(stride_px).run(whole)[0, halo:-halo, halo:-halo], rtol=1e-5)
    (shape,) = runner.shapes  # one for all blocks, so that a runtime plans its memory once
    assert max(shape[2:]) <= saliency.BLOCK_PX + 2 * saliency.HALO_PX


@pytest.mark.parametrize(
    "made", [np.zeros((1, 3, 3)), np.zeros((1, 24, 24, 1)), np.full((1, 24, 24), -1.0), np.full((1, 24, 24), np.nan)]
)
def test_a_network_that_gives_something_else_is_refused(made):
    class Wrong:
        stride_px = 8

        def run(self, _: np.ndarray) -> np.ndarray:
            return made.astype(np.float32)

    with pytest.raises(BadInput, match="the saliency model gives") as caught:
        saliency.cnn(np.zeros((64, 64, 3), np.uint8), Wrong(), cell_px=8)
    assert "each 8 x 8 px" in caught.value.remedy


def slow_novelty(features: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    rows, cols = grid
    out = np.zeros(grid)
    units = [v / math.sqrt(float(v @ v)) if v.any() else v for v in features.astype(np.float64)]
    for row, col in np.ndindex(rows, cols):
        around = [
            units[r * cols + c]
            for r in range(max(0, row - saliency.RING), min(rows, row + saliency.RING + 1))
            for c in range(max(0, col - saliency.RING), min(cols, col + saliency.RING + 1))
            if (r, c) != (row, col)
        ]
        mean = sum(around) if around else np.zeros(features.shape[1])
        own = units[row * cols + col]
        if own.any() and math.sqrt(float(mean @ mean)) > 1e-9:
            out[row, col] = 1 - own @ mean / math.sqrt(float(mean @ mean))
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 7), st.integers(1, 6), st.floats(1e-30, 1e30))
def test_novelty_equals_a_loop_over_tokens(seed, rows, cols, channels, scale):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((rows * cols, channels)) * (rng.random((rows * cols, 1)) > 0.1)
    found = saliency.novelty((features * scale).astype(np.float32), grid=(rows, cols))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, slow_novelty((features * scale).astype(np.float32), (rows, cols)), atol=1e-4)


def test_the_odd_one_out_is_the_most_novel_and_equal_tokens_are_not_at_all():
    features = np.tile(np.float32([1, 0]), (25, 1))
    assert saliency.novelty(features, grid=(5, 5)).max() < 1e-6
    features[12] = [0, 1]
    assert np.unravel_index(saliency.novelty(features, grid=(5, 5)).argmax(), (5, 5)) == (2, 2)


def test_a_coarse_map_lies_over_the_image_as_a_whole():
    coarse = np.zeros((4, 4), np.float32)
    coarse[1, 2] = 1
    cells = saliency.to_cells(coarse, image_px=(800, 400), cell_px=10)
    assert cells.shape == (40, 80)
    row, col = np.unravel_index(cells.argmax(), cells.shape)
    assert 10 <= row < 20
    assert 40 <= col < 60
    assert saliency.to_cells(coarse, image_px=(1, 1), cell_px=7).shape == (1, 1)

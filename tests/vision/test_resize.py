"""Resizing, padding and normalising against Pillow, NumPy and transformers' own transforms."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import image_transforms

from tests.image_bytes import noise
from vlm_edge.errors import BadImage
from vlm_edge.vision import resize
from vlm_edge.vision.normalisation import FILTERS, Normalisation
from vlm_edge.vision.resize import (
    padded,
    resized,
    resized_window,
    source_box,
    squared,
)

FILTER = st.sampled_from(sorted(FILTERS))
EDGE = st.integers(1, 40)
SEED = st.integers(0, 99)


def by_pillow(pixels: np.ndarray, to_px: tuple[int, int], resample: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize(to_px, Image.Resampling(resample)))


def test_the_filters_numbers_are_pillows():
    named = ("LANCZOS", "BILINEAR", "BICUBIC", "BOX", "HAMMING")
    assert {Image.Resampling[name] for name in named} == FILTERS == {*resize.FILTERS}


@pytest.mark.parametrize("resample", sorted(FILTERS))
def test_resized_is_pillows(resample: int):
    pixels = noise(30, 50)
    np.testing.assert_array_equal(resized(pixels, (20, 70), resample), by_pillow(pixels, (20, 70), resample))
    assert resized(pixels, (50, 30), resample) is pixels


@settings(max_examples=300, deadline=None)
@given(EDGE, EDGE, st.integers(1, 20), st.integers(1, 20), FILTER, SEED, st.data())
def test_a_window_is_that_part_of_the_enlarged_image(width, height, wider, higher, resample, seed, data):
    pixels = noise(height, width, seed=seed)
    to_px = width * wider + data.draw(st.integers(0, 5)), height * higher + data.draw(st.integers(0, 5))
    x0, y0 = data.draw(st.integers(0, to_px[0] - 1)), data.draw(st.integers(0, to_px[1] - 1))
    window = x0, y0, data.draw(st.integers(x0 + 1, to_px[0])), data.draw(st.integers(y0 + 1, to_px[1]))
    expected = by_pillow(pixels, to_px, resample)[window[1] : window[3], window[0] : window[2]]
    with pytest.MonkeyPatch.context() as patch:
        for limit in (resize.WHOLE_PX, -1):
            patch.setattr(resize, "WHOLE_PX", limit)
            np.testing.assert_array_equal(resized_window(pixels, to_px, window, resample), expected)


@settings(max_examples=300, deadline=None)
@given(EDGE, st.integers(1, 400), st.booleans(), st.integers(1, 60), FILTER, SEED)
def test_a_square_of_a_strip_is_the_padded_image_resized(short, long, upright, side, resample, seed):
    colour = 10, 200, 77
    pixels = noise(long, short, seed=seed) if upright else noise(short, long, seed=seed)
    height, width = pixels.shape[:2]
    edge = max(height, width)
    top, left = (edge - height) // 2, (edge - width) // 2
    canvas = np.tile(np.array(colour, np.uint8), (edge, edge, 1))
    canvas[top : top + height, left : left + width] = pixels
    expected = by_pillow(canvas, (side, side), resample)
    with pytest.MonkeyPatch.context() as patch:
        for limit in (resize.WHOLE_PX, 0):
            patch.setattr(resize, "WHOLE_PX", limit)
            np.testing.assert_array_equal(squared(pixels, side, colour, resample), expected)


@pytest.mark.parametrize("shape", [(60_000, 1), (1, 60_000)])
def test_long_strips_stay_small(shape: tuple[int, int]):
    """Whole, the enlarged strip would take 20 GB, and its square 11 GB."""
    pixels = noise(*shape)
    to_px = 336 * shape[1], 336 * shape[0]
    left, top = ((edge - 336) // 2 for edge in to_px)
    tracemalloc.start()
    cropped = resized_window(pixels, to_px, (left, top, left + 336, top + 336), 3)
    square = squared(pixels, 336, (1, 2, 3), 3)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert cropped.shape == square.shape == (336, 336, 3)
    assert peak_bytes < 32 << 20


@settings(deadline=None)
@given(
    st.integers(-9, 9), st.integers(-9, 9), st.integers(0, 30), st.integers(0, 30), st.integers(0, 9), st.integers(0, 9)
)
def test_padded_is_a_window_of_an_endless_canvas(x0, y0, width, height, left, top):
    pixels = noise(11, 7)
    canvas = np.zeros((80, 80, 3), np.uint8)
    canvas[:] = 9, 8, 7
    canvas[top + 20 : top + 31, left + 20 : left + 27] = pixels
    got = padded(pixels, (x0, y0, x0 + width, y0 + height), (left, top), (9, 8, 7))
    np.testing.assert_array_equal(got, canvas[y0 + 20 : y0 + 20 + height, x0 + 20 : x0 + 20 + width])


@pytest.mark.parametrize("scale", [1 / 255, 0.00392156862745098, 1 / 127.5, 1.0])
@pytest.mark.parametrize("mean", [(0.48145466, 0.4578275, 0.40821073), (0.5, 0.5, 0.5), (0.0, 0.0, 0.0)])
def test_normalising_equals_transformers(scale: float, mean: tuple[float, float, float]):
    std = (0.26862954, 0.26130258, 0.27577711)
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    expected = image_transforms.normalize(image_transforms.rescale(pixels, scale), mean, std)
    got = Normalisation(scale, mean, std).apply(pixels)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected.transpose(2, 0, 1))


def test_views_are_stacked_channels_first():
    views = [noise(5, 7, seed=seed) for seed in range(3)]
    stacked = Normalisation().stack(views)
    np.testing.assert_array_equal(stacked, np.stack(views).transpose(0, 3, 1, 2).astype(np.float32))


@pytest.mark.parametrize(
    ("part", "content", "box"),
    [
        ((0, 0, 50, 50), (0, 0, 100, 100), (0, 0, 100, 25)),
        ((25, 0, 75, 100), (0, 0, 100, 100), (50, 0, 150, 50)),
        ((33, 0, 66, 100), (0, 0, 100, 100), (66, 0, 132, 50)),
        ((1, 1, 2, 2), (0, 0, 3, 3), (66, 16, 134, 34)),
        ((0, 0, 50, 50), (0, 25, 100, 75), (0, 0, 100, 25)),
        ((0, 0, 20, 20), (0, 25, 100, 75), (0, 0, 40, 0)),
        ((80, 80, 100, 100), (0, 25, 100, 75), (160, 50, 200, 50)),
    ],
)
def test_boxes_in_the_source(part, content, box):
    assert source_box(part, content, (200, 50)) == box


@pytest.mark.parametrize("array", [noise()[..., :2], noise().astype(np.int16), noise()[:0], noise()[0]])
def test_only_rgb_is_an_image(array: np.ndarray):
    with pytest.raises(BadImage, match="no image"):
        resize.require_rgb(array)

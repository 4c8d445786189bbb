"""Images read in bands against Pillow's work on the whole of them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.image_bytes import noise
from vlm_edge.vision import raster, resize
from vlm_edge.vision.normalisation import FILTERS
from vlm_edge.vision.raster import FileRaster, crops, shrunk
from vlm_edge.vision.resize import enlarged_windows, resized, resized_window, squared

EDGE = st.one_of(st.integers(1, 40), st.integers(1, 260))
FILTER = st.sampled_from(sorted(FILTERS))
SEED = st.integers(0, 99)


@dataclass(frozen=True, eq=False)
class Cut:
    """Pixels that come in bands of unequal heights."""

    pixels: np.ndarray
    seed: int = 0

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        return self.pixels.shape[0]

    def bands(self) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(self.seed)
        top = 0
        while top < self.height:
            rows = int(rng.integers(1, 1 + max(1, self.height // 3)))
            yield self.pixels[top : top + rows]
            top += rows


def by_pillow(pixels: np.ndarray, to_px: tuple[int, int], resample: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize(to_px, Image.Resampling(resample)))


@settings(max_examples=120, deadline=None)
@given(EDGE, EDGE, EDGE, EDGE, FILTER, SEED)
def test_shrunk_is_pillows_resize_of_the_whole(width, height, to_width, to_height, resample, seed):
    """Among these sizes are all that Pillow resamples down before across."""
    pixels = noise(height, width, seed=seed)
    expected = by_pillow(pixels, (to_width, to_height), resample)
    with pytest.MonkeyPatch.context() as patch:
        for band_px in (raster.BAND_PX, 300):
            patch.setattr(raster, "BAND_PX", band_px)
            made = shrunk(Cut(pixels, seed), (to_width, to_height), resample)
            np.testing.assert_array_equal(made, expected)


@settings(max_examples=60, deadline=None)
@given(EDGE, EDGE, EDGE, EDGE, FILTER, SEED, st.data())
def test_a_window_is_that_part_of_the_resized_image(width, height, to_width, to_height, resample, seed, data):
    pixels = noise(height, width, seed=seed)
    x0, y0 = data.draw(st.integers(0, to_width - 1)), data.draw(st.integers(0, to_height - 1))
    window = x0, y0, data.draw(st.integers(x0 + 1, to_width)), data.draw(st.integers(y0 + 1, to_height))
    expected = by_pillow(pixels, (to_width, to_height), resample)[y0 : window[3], x0 : window[2]]
    made = resized_window(Cut(pixels, seed), (to_width, to_height), window, resample)
    np.testing.assert_array_equal(made, expected)
    if to_width >= width and to_height >= height:
        for picture in (pixels, Cut(pixels, seed)):
            np.testing.assert_array_equal(
                enlarged_windows(picture, (to_width, to_height), [window], resample)[0], expected
            )


@settings(max_examples=60, deadline=None)
@given(EDGE, EDGE, st.integers(1, 60), FILTER, SEED)
def test_a_square_is_that_of_the_whole(width, height, side, resample, seed):
    pixels = noise(height, width, seed=seed)
    edge = max(width, height)
    canvas = np.tile(np.array((9, 100, 201), np.uint8), (edge, edge, 1))
    top, left = (edge - height) // 2, (edge - width) // 2
    canvas[top : top + height, left : left + width] = pixels
    expected = by_pillow(canvas, (side, side), resample)
    np.testing.assert_array_equal(squared(Cut(pixels, seed), side, (9, 100, 201), resample), expected)


@given(EDGE, EDGE, SEED, st.data())
def test_crops_are_those_of_the_whole(width, height, seed, data):
    pixels = noise(height, width, seed=seed)
    boxes = []
    for _ in range(data.draw(st.integers(0, 4))):
        x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
        boxes.append((x0, y0, data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))))
    for made, (x0, y0, x1, y1) in zip(crops(Cut(pixels, seed), boxes), boxes, strict=True):
        np.testing.assert_array_equal(made, pixels[y0:y1, x0:x1])


def test_reading_ends_behind_the_last_crop():
    class Short(Cut):
        def bands(self) -> Iterator[np.ndarray]:
            yield self.pixels[:10]
            raise AssertionError("read on")

    assert crops(Short(noise(30, 5)), [(0, 2, 3, 9)])[0].shape == (7, 3, 3)
    assert crops(Short(noise(30, 5)), []) == []


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_a_file_is_read_anew_each_time(tmp_path: Path, kind: str):
    pixels = noise(700, 900)
    path = tmp_path / f"page.{kind.lower()}"
    Image.fromarray(pixels).save(path)
    file = FileRaster(path, 900, 700)
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(file.bands())), pixels)
        np.testing.assert_array_equal(resized(file, (60, 50), 3), by_pillow(pixels, (60, 50), 3))


@pytest.mark.parametrize("size", [(200_000, 12), (12, 200_000)])
def test_long_strips_stay_small(size: tuple[int, int]):
    """A strip's square has 40,000 megapixels."""
    width, height = size
    resample = Image.Resampling.BICUBIC
    strip = Cut(np.zeros((height, width, 3), np.uint8))
    tracemalloc.start()
    try:
        square = squared(strip, 8, (255, 255, 255), resample)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert square.shape == (8, 8, 3)
    assert peak < 200 << 20


def test_arrays_and_rasters_have_one_size():
    pixels = noise(3, 5)
    assert raster.size_of(pixels) == raster.size_of(Cut(pixels)) == resize.require_rgb(Cut(pixels)) == (5, 3)

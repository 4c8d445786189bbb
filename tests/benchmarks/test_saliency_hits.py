"""The benchmark's own parts: the PNG that it writes, the image that it makes, and what it counts as a hit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import saliency_hits
from recipes.nano.pages import Line, Page
from vlm_edge.vision.tiling import Tile

PAGE = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)


@pytest.mark.parametrize("size", [(5, 4), (40, 30), (17, 13)])
def test_large_images_are_the_page_over_and_over(size: tuple[int, int], tmp_path: Path) -> None:
    expected = np.tile(PAGE, (10, 10, 1))[: size[1], : size[0]]
    saliency_hits.write_png(tmp_path / "a.png", size, PAGE)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), expected)
    np.testing.assert_array_equal(saliency_hits.array_of(size, PAGE), expected)


def test_a_hit_is_a_line_that_lies_in_a_tile_or_over_two_that_abut() -> None:
    boxes = (10, 10, 90, 24), (100, 50, 200, 64), (150, 190, 300, 204), (390, 10, 460, 24)
    lines = tuple(Line("total", "1", box, (box[0],), box[1] + 7, "none", 12) for box in boxes)
    page = Page(np.zeros((400, 400, 3), np.uint8), lines, (), 0.0)
    tiles = [Tile(x, y, x + 112, y + 112, 0.0) for x, y in ((0, 0), (120, 150), (232, 150))]
    assert saliency_hits.shown(page, tiles) == (2, 3), (
        "the second lies across a border alone, the fourth leaves the page"
    )
    assert saliency_hits.shown(page, []) == (0, 3)

"""The benchmark's own parts: the PNG that it writes, the image that it makes, and what it counts as a hit."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import saliency_hits, scale_hits
from recipes.nano.fonts import FontsMissing
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


def test_a_line_may_lie_over_tiles_that_cover_it_together() -> None:
    assert scale_hits.covered((10, 10, 50, 20), [(0, 0, 30, 30), (30, 5, 60, 20)])
    assert not scale_hits.covered((10, 10, 50, 20), [(0, 0, 30, 30), (31, 5, 60, 20)])
    assert not scale_hits.covered((10, 10, 50, 20), [(0, 0, 90, 19)])
    assert not scale_hits.covered((10, 10, 50, 20), [])


def test_the_tables_of_scales(capsys: pytest.CaptureFixture[str]) -> None:
    """One page: where no coarser scale may be taken, letters keep their size, so no row has fewer hits for smaller letters."""
    try:
        scale_hits.scales(1)
    except FontsMissing as missing:
        pytest.skip(str(missing))
    told = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in told[3:]]
    assert {row[0] for row in rows} == set(scale_hits.FAMILIES)
    assert len(rows) == 2 * (len(scale_hits.COUNTS) * len(scale_hits.LEGIBLE_PX) + 1)
    for family in scale_hits.FAMILIES:
        for count in scale_hits.COUNTS:
            shares = [
                [float(cell.partition("%")[0]) for cell in row[3:]] for row in rows if row[:2] == [family, str(count)]
            ]
            for smaller, larger in itertools.pairwise(shares):
                assert all(more >= fewer for more, fewer in zip(smaller, larger, strict=True))
            assert shares[0][0] == shares[-1][0]

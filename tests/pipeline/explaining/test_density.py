"""Tokens by area, worked out by hand and against a loop over pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.pipeline.explaining.test_explain import ANSWER, colour, plain
from vlm_edge.core.geometry import TokenGeometry
from vlm_edge.pipeline.explaining.density import MEGAPIXEL, density_panel, token_density
from vlm_edge.vision.tiling import Tile

SQUARE = TokenGeometry(view_px=2, grid=(2, 2))
EACH = (0, 1, 2, 3)


def test_a_view_of_four_tokens_and_a_tile_of_four_more() -> None:
    answer = replace(ANSWER, tiles=(Tile(0, 0, 50, 50, 1.0),), members=(EACH, EACH))
    found = token_density(answer, SQUARE, image_px=(100, 100), shown_px=(100, 100))
    assert found[80, 80] == pytest.approx(4 / 10_000 * MEGAPIXEL)
    assert found[20, 20] == pytest.approx((4 / 10_000 + 4 / 2_500) * MEGAPIXEL)
    assert found.sum() / MEGAPIXEL == pytest.approx(8)  # every token once


def test_merged_tokens_are_shared_out_and_dropped_ones_count_nothing() -> None:
    answer = replace(ANSWER, tiles=(), members=((0, 0, 1, -1),))
    found = token_density(answer, SQUARE, image_px=(100, 100), shown_px=(10, 10))
    quarter = MEGAPIXEL / 2_500
    assert (found[0, 0], found[0, 9], found[9, 0], found[9, 9]) == pytest.approx((quarter / 2, quarter / 2, quarter, 0))


def test_against_a_loop_over_pixels() -> None:
    draw = np.random.default_rng(0)
    members = tuple(tuple(int(m) for m in draw.integers(-1, 9, 16)) for _ in range(3))
    tiles = (Tile(20, 10, 60, 50, 1.0), Tile(40, 30, 80, 70, 1.0))
    answer, geometry = replace(ANSWER, tiles=tiles, members=members), TokenGeometry(view_px=40, grid=(4, 4))
    found = token_density(answer, geometry, image_px=(80, 80), shown_px=(80, 80))
    for y, x in draw.integers(0, 80, (200, 2)):
        expected = 0.0
        for (x0, y0, x1, y1), view in zip(((0, 0, 80, 80), *(tile.box for tile in tiles)), members, strict=True):
            if x0 <= x < x1 and y0 <= y < y1:
                member = view[(y - y0) * 4 // (y1 - y0) * 4 + (x - x0) * 4 // (x1 - x0)]
                area = (x1 - x0) * (y1 - y0) / 16
                expected += 0 if member < 0 else MEGAPIXEL / area / view.count(member)
        assert found[y, x] == pytest.approx(expected)


def test_views_of_a_familys_own_and_padding() -> None:
    answer = replace(
        ANSWER, tiles=(), views=((0, 0, 50, 100), (7, 7, 7, 7), (50, 0, 100, 100)), members=(EACH, EACH, (0, 0, 0, 0))
    )
    found = token_density(answer, SQUARE, image_px=(100, 100), shown_px=(100, 100))
    assert found[:, :50].sum() / MEGAPIXEL == pytest.approx(4)
    assert found[:, 50:].sum() / MEGAPIXEL == pytest.approx(1)
    larger = token_density(
        answer, SQUARE, image_px=(400, 400), shown_px=(100, 100)
    )  # decoded at a quarter of its scale
    np.testing.assert_allclose(larger, found / 16)


def test_the_panel_is_greener_where_there_are_more_tokens() -> None:
    answer = replace(ANSWER, tiles=(Tile(0, 0, 50, 50, 1.0),), members=(EACH, (0, 1, 2, -1)))
    panel = density_panel(plain(100, 100), (100, 100), answer, SQUARE, longest_px=420)
    dense, thin = (np.array(colour(panel, x, y)) for x, y in ((50, 24 + 50), (400, 24 + 400)))
    assert dense[1] - dense[0] > thin[1] - thin[0] > 0
    all_dropped = replace(ANSWER, tiles=(), members=((-1, -1, -1, -1),))
    assert colour(density_panel(plain(9, 9), (9, 9), all_dropped, SQUARE, longest_px=420), 100, 200) == (200, 200, 200)

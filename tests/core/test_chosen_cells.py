"""Which tiles of a family's grid may be chosen, and what they take: bounds against every choice that there is."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.test_geometry import GEOMETRIES
from vlm_edge.core.geometry import AnyResGeometry, ImageLayout, PatchGeometry, TokenGeometry, visual_token_count

SMALL: dict[str, TokenGeometry] = {
    "anyres": AnyResGeometry(28, (4, 4), pinpoints=((28, 56), (56, 28), (84, 56))),
    "split": GEOMETRIES["split"],
    "tiles": GEOMETRIES["tiles"],
    "patches": PatchGeometry(28, (2, 2), patch_px=7, merge=2, min_pixels=196, max_pixels=50 * 196),
}
"""Geometries with whose grids every choice can be tried."""
CHOOSE = pytest.mark.parametrize("name", SMALL)


def grids(name: str, width: int, height: int) -> tuple[ImageLayout, ...]:
    return tuple(scale for scale in SMALL[name].scales((width, height)) if scale.rows * scale.cols <= 9)


@CHOOSE
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 110), st.integers(1, 110), st.integers(1, 9), st.booleans())
def test_the_plan_of_a_choice_is_the_dearest_choice(name: str, width: int, height: int, tiles: int, large: bool):
    if large and name in ("split", "tiles"):
        width, height = width * 12, height * 12
    geometry, size = SMALL[name], (width, height)
    scales = grids(name, width, height)
    if not scales or scales != geometry.scales(size):
        return
    dearest = geometry.overview(size).positions
    for scale in scales:
        cells = [(row, col) for row in range(scale.rows) for col in range(scale.cols)]
        for chosen in combinations(cells, min(tiles, len(cells))):
            dearest = max(dearest, geometry.subset(size, scale, chosen).positions)
    assert geometry.most(size, tiles).positions == dearest
    assert visual_token_count(geometry, image_px=size, tiles=tiles) == dearest


@pytest.mark.parametrize("name", ["anyres", "split", "tiles", "patches"])
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(0, 30), st.data())
def test_no_choice_takes_more_than_its_plan(name: str, width: int, height: int, tiles: int, data):
    geometry, size = GEOMETRIES[name], (width, height)
    if name == "patches" and max(size) > 200 * min(size):
        return
    planned = geometry.most(size, tiles)
    for scale in geometry.scales(size):
        cells = st.tuples(st.integers(0, scale.rows - 1), st.integers(0, scale.cols - 1))
        chosen = geometry.subset(size, scale, data.draw(st.lists(cells, max_size=tiles)))
        assert chosen.positions <= planned.positions
        assert chosen.views <= planned.views


@CHOOSE
def test_all_tiles_are_the_familys_own_layout_and_none_the_overview(name: str):
    geometry, size = SMALL[name], (84, 56) if name in ("anyres", "patches") else (1456, 1000)
    *_, own = geometry.scales(size)
    cells = [(row, col) for row in range(own.rows) for col in range(own.cols)]
    assert geometry.subset(size, own, cells).visual_tokens == geometry.layout(size).visual_tokens
    assert geometry.subset(size, own, cells) == own
    assert geometry.subset(size, own, ()).positions < own.positions
    with pytest.raises(ValueError, match="outside"):
        geometry.subset(size, own, [(own.rows, 0)])


@pytest.mark.parametrize("name", ["one view", "marked view", "whole", "quarters"])
def test_families_of_one_view_have_nothing_to_choose(name: str):
    geometry = GEOMETRIES[name]
    assert geometry.scales((900, 700)) == ()
    assert geometry.most((900, 700), 4) == geometry.layout((900, 700))


@pytest.mark.parametrize(("name", "cells"), [("anyres", 8 * 10), ("tiles", 6 * 8)])
def test_a_page_has_a_grid_of_its_own_pixels(name: str, cells: int):
    fine, own = GEOMETRIES[name].scales((2550, 3300))
    assert fine.rows * fine.cols == cells
    assert own == GEOMETRIES[name].layout((2550, 3300))
    assert fine.content[2] - fine.content[0] >= 2550


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000))
def test_a_page_as_it_is_loses_no_pixel_with_its_padding(width: int, height: int):
    """Every token that shows a pixel of the image is kept, and no other: by a loop over tokens."""
    geometry = GEOMETRIES["anyres"]
    scales = geometry.scales((width, height))
    if len(scales) < 2:
        return
    fine = scales[0]
    x0, y0, x1, y1 = fine.content
    rows = [row for row in range(fine.rows * 24) if row * 14 < y1 and (row + 1) * 14 > y0]
    cols = [col for col in range(fine.cols * 24) if col * 14 < x1 and (col + 1) * 14 > x0]
    assert fine.token_grid == (len(rows), len(cols))
    windows = [geometry.kept_window(fine, (row // 24, 0)) for row in (rows[0], rows[-1])]
    assert (windows[0][1], windows[1][3]) == (rows[0] % 24, rows[-1] % 24 + 1)
    windows = [geometry.kept_window(fine, (0, col // 24)) for col in (cols[0], cols[-1])]
    assert (windows[0][0], windows[1][2]) == (cols[0] % 24, cols[-1] % 24 + 1)

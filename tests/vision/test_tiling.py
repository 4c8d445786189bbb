"""Tiling: windows stay inside, words stay whole, wide lines come out as neighbours, and the search is exhaustive."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vlm_edge.vision import saliency, tiling
from vlm_edge.vision.tiling import Tile, grid_tiles, reading_order, salient_tiles

TILE_PX = 112
CELLS_PX = st.sampled_from([7, 8])
seeds = st.integers(0, 2**32 - 1)


def dots(image_px: tuple[int, int], boxes: Iterable[tuple[int, int, int, int]], seed: int = 0) -> np.ndarray:
    """White uint8 [H, W] with random black dots in boxes (x, y, width, height): what a word looks like to saliency.

    Every other pixel along the sides of a box is black, so that the box is as tight as its ink.
    """
    rng = np.random.default_rng(seed)
    gray = np.full(image_px[::-1], 255, np.uint8)
    for x, y, width, height in boxes:
        word = rng.choice(np.array([0, 255], np.uint8), (height, width))
        word[[0, -1]] = np.where(np.arange(width) % 2, 255, 0)
        word[:, [0, -1]] = np.where(np.arange(height) % 2, 255, 0)[:, None]
        gray[y : y + height, x : x + width] = word
    return gray


def tiles_of(gray: np.ndarray, *, cell_px: int = 7, max_tiles: int = 6) -> tuple[Tile, ...]:
    height, width = gray.shape
    found = saliency.detail(gray, cell_px=cell_px)
    return salient_tiles(found, image_px=(width, height), tile_px=TILE_PX, cell_px=cell_px, max_tiles=max_tiles)


def holds(tile: Tile, x: int, y: int, width: int, height: int) -> bool:
    return tile.x0 <= x and tile.y0 <= y and tile.x1 >= x + width and tile.y1 >= y + height


def slow_worth(energy: np.ndarray, row: int, col: int, span: int) -> tuple[float, float]:
    """A first window's worth without bonus, and the share of its saliency in its middle, summed cell by cell."""

    def at(r: int, c: int) -> float:
        return float(energy[r, c]) if 0 <= r < energy.shape[0] and 0 <= c < energy.shape[1] else 0.0

    cells = [(r, c) for r in range(row, row + span) for c in range(col, col + span)]
    margin = span // 8
    middle = [(r, c) for r, c in cells if margin <= min(r - row, c - col) and max(r - row, c - col) < span - margin]
    covered = sum(at(r, c) for r, c in cells)
    cut = sum(min(at(row, c), at(row - 1, c)) for c in range(col, col + span))
    cut += sum(min(at(row + span - 1, c), at(row + span, c)) for c in range(col, col + span))
    cut += sum(min(at(r, col), at(r, col - 1)) for r in range(row, row + span))
    cut += sum(min(at(r, col + span - 1), at(r, col + span)) for r in range(row, row + span))
    centred = sum(at(r, c) for r, c in middle) / covered if covered else 0.0
    return covered - tiling.CUT_WEIGHT * cut, centred


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(5, 400),
    st.integers(5, 400),
    st.integers(0, 6),
    CELLS_PX,
    st.sampled_from([0.002, 0.02, 0.5]),
)
def test_tiles_are_inside_few_and_distinct(seed, width, height, max_tiles, cell_px, density):
    rng = np.random.default_rng(seed)
    gray = np.where(rng.random((height, width)) < density, 0, 255).astype(np.uint8)
    tiles = tiles_of(gray, cell_px=cell_px, max_tiles=max_tiles)
    assert len(tiles) <= max_tiles
    assert len({tile.box for tile in tiles}) == len(tiles)
    for tile in tiles:
        assert 0 <= tile.x0 < tile.x1 <= width
        assert 0 <= tile.y0 < tile.y1 <= height
        assert tile.x1 - tile.x0 == min(TILE_PX, width)
        assert tile.y1 - tile.y0 == min(TILE_PX, height)
        assert tile.score > 0


@pytest.mark.parametrize("image_px", [(300, 200), (50, 30), (1, 1), (113, 111)])
def test_a_blank_image_gives_no_tiles(image_px):
    assert tiles_of(np.full(image_px[::-1], 255, np.uint8)) == ()


def test_an_image_smaller_than_a_tile_is_its_own_tile():
    assert [tile.box for tile in tiles_of(dots((90, 60), [(20, 20, 20, 10)]))] == [(0, 0, 90, 60)]


def test_an_image_narrower_than_a_tile_is_cut_in_height_only():
    tiles = tiles_of(dots((60, 500), [(10, 300, 40, 16)]))
    assert [(tile.x0, tile.x1, tile.y1 - tile.y0) for tile in tiles] == [(0, 60, TILE_PX)]
    assert holds(tiles[0], 10, 300, 40, 16)


@settings(max_examples=150, deadline=None)
@given(seeds, CELLS_PX, st.data())
def test_a_word_alone_is_whole_in_some_tile(seed, cell_px, data):
    width, height = data.draw(st.integers(130, 500)), data.draw(st.integers(130, 400))
    box_width, box_height = data.draw(st.integers(12, 90)), data.draw(st.integers(8, 20))
    x, y = data.draw(st.integers(0, width - box_width)), data.draw(st.integers(0, height - box_height))
    tiles = tiles_of(dots((width, height), [(x, y, box_width, box_height)], seed), cell_px=cell_px)
    assert any(holds(tile, x, y, box_width, box_height) for tile in tiles)


@settings(max_examples=60, deadline=None)
@given(seeds, st.data())
def test_words_far_apart_are_each_whole_in_some_tile(seed, data):
    lanes = [(60, 40), (300, 40), (60, 260), (300, 260)]
    boxes = [(x + data.draw(st.integers(0, 50)), y + data.draw(st.integers(0, 80)), 80, 16) for x, y in lanes]
    tiles = tiles_of(dots((500, 420), boxes, seed))
    assert len(tiles) == 4
    assert all(any(holds(tile, *box) for tile in tiles) for box in boxes)


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from([(7, 182), (8, 184), (14, 182), (16, 176)]), st.data())
def test_a_line_wider_than_a_tile_gives_two_that_abut(seed, cell_and_width, data):
    cell_px, box_width = cell_and_width
    width, height, box_height = 504, 320, data.draw(st.integers(10, 20))
    x = cell_px * data.draw(st.integers(-(-TILE_PX // cell_px), (width - TILE_PX - box_width) // cell_px))
    y = data.draw(st.integers(0, height - box_height))
    tiles = tiles_of(dots((width, height), [(x, y, box_width, box_height)], seed), cell_px=cell_px)
    assert len(tiles) == 2
    left, right = tiles
    assert (left.x1, left.y0, left.y1) == (right.x0, right.y0, right.y1)
    assert holds(Tile(left.x0, left.y0, right.x1, right.y1, 0), x, y, box_width, box_height)


@settings(max_examples=60, deadline=None)
@given(seeds, CELLS_PX, st.integers(TILE_PX, 504 - TILE_PX - 180), st.integers(0, 300))
def test_a_line_at_any_pixel_gives_two_that_abut_within_its_rows(seed, cell_px, x, y):
    """Off the cell grid a few pixels of an end may be left out, or get a third tile; the two main tiles still abut."""
    tiles = tiles_of(dots((504, 320), [(x, y, 180, 16)], seed), cell_px=cell_px)
    best = sorted(sorted(tiles, key=lambda tile: -tile.score)[:2], key=lambda tile: tile.x0)
    assert best[0].x1 == best[1].x0
    assert best[0].y0 == best[1].y0 <= y
    assert best[0].y1 >= y + 16


@pytest.mark.parametrize("cell_px", [7, 8])
def test_one_tile_is_found_on_a_line_wider_than_it(cell_px):
    assert len(tiles_of(dots((504, 320), [(120, 100, 180, 16)]), cell_px=cell_px, max_tiles=1)) == 1


@pytest.mark.parametrize(("width", "height"), [(300, 300), (200, 200), (400, 130)])
@pytest.mark.parametrize("cell_px", [7, 8, 14, 16])
def test_detail_larger_than_a_tile_both_ways_still_gets_tiles(width, height, cell_px):
    """Every window cuts it, at the first weight for more than it covers."""
    tiles = tiles_of(dots((700, 600), [(100, 100, width, height)]), cell_px=cell_px, max_tiles=20)
    seen = np.zeros((600, 700), bool)
    for tile in tiles:
        seen[tile.y0 : tile.y1, tile.x0 : tile.x1] = True
    assert seen[100 : 100 + height, 100 : 100 + width].mean() > 0.8


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 4), st.integers(5, 16), st.integers(5, 16))
def test_a_single_tile_is_the_best_of_all_windows(seed, words, rows, cols):
    span, cell_px = 8, 4
    rng = np.random.default_rng(seed)
    field = np.zeros((rows, cols), np.float32)
    for _ in range(words):
        row, col = rng.integers(0, rows), rng.integers(0, cols)
        patch = field[row : row + 1, col : col + rng.integers(1, 4)]
        patch[:] = rng.uniform(20, 60, patch.shape)
    image_px = cols * cell_px, rows * cell_px
    tile = salient_tiles(field, image_px=image_px, tile_px=span * cell_px, cell_px=cell_px, max_tiles=1)[0]
    energy = field.astype(np.float64) ** 2
    spots = [(r, c) for r in range(max(1, rows - span + 1)) for c in range(max(1, cols - span + 1))]
    scores = [slow_worth(energy, r, c, span) for r, c in spots]
    scale = max(energy[r : r + span, c : c + span].sum() for r, c in spots)
    totals = [worth + tiling.CENTER_BONUS * scale * centred for worth, centred in scores]
    assume(max(totals) > 0.05 * scale)  # else nothing pays at the first CUT_WEIGHT
    chosen = totals[spots.index((tile.y0 // cell_px, tile.x0 // cell_px))]
    assert chosen == pytest.approx(max(totals), rel=1e-7)
    assert tile.score == pytest.approx(energy[tile.y0 // cell_px :, tile.x0 // cell_px :][:span, :span].sum(), rel=1e-5)


@pytest.mark.parametrize("max_tiles", [0, 1, 4, 100])
@pytest.mark.parametrize("image_px", [(300, 250), (224, 112), (50, 60), (113, 400)])
def test_grid_tiles_cover_the_image_in_rows(image_px, max_tiles):
    width, height = image_px
    tiles = grid_tiles(image_px=image_px, tile_px=TILE_PX, max_tiles=max_tiles)
    needed = -(-width // TILE_PX) * -(-height // TILE_PX)
    assert len(tiles) == min(max_tiles, needed)
    seen = np.zeros((height, width), bool)
    for tile in tiles:
        assert 0 <= tile.x0 < tile.x1 <= width
        assert 0 <= tile.y0 < tile.y1 <= height
        assert tile.box == (tile.x0, tile.y0, tile.x1, tile.y1)
        seen[tile.y0 : tile.y1, tile.x0 : tile.x1] = True
    assert seen.all() == (len(tiles) == needed)
    assert [(tile.y0, tile.x0) for tile in tiles] == sorted((tile.y0, tile.x0) for tile in tiles)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=8, unique=True))
def test_reading_order_loses_no_tile(corners):
    tiles = [Tile(50 * x, 50 * y, 50 * x + 100, 50 * y + 100, 1.0) for x, y in corners]
    assert sorted(tile.box for tile in reading_order(list(tiles))) == sorted(tile.box for tile in tiles)


def test_reading_order_keeps_neighbours_together():
    left, right = Tile(0, 20, 100, 120, 1), Tile(100, 0, 200, 100, 1)
    below, between = Tile(0, 300, 100, 400, 1), Tile(400, 10, 500, 110, 1)
    assert reading_order([below, between, right, left]) == (left, right, between, below)


@pytest.mark.parametrize("width_px", range(216, 232))
def test_two_tiles_abut_or_stay_apart_on_pages_about_two_tiles_wide(width_px):
    detail = np.zeros((32, -(-width_px // 7)), np.float32)
    detail[12:14] = 100.0
    size = (width_px, 224)
    tiles = tiling.salient_tiles(detail, image_px=size, tile_px=112, cell_px=7, max_tiles=2)
    joined = len(tiles) == 2 and tiles[0].x1 == tiles[1].x0
    assert joined is (width_px >= 224)


def test_strips_are_tiles_that_abut_at_one_height():
    def at(x: int, y: int, side: int = 112) -> Tile:
        return Tile(x, y, x + side, y + side, 0.0)

    assert tiling.strips([]) == ()
    assert tiling.strips([at(0, 0), at(112, 0), at(224, 0), at(0, 300)]) == ((0, 1, 2), (3,))
    assert tiling.strips([at(0, 0), at(113, 0), at(225, 1)]) == ((0,), (1,), (2,))
    assert tiling.strips([at(112, 0), at(0, 0), at(112, 0, side=50)]) == ((0,), (1,), (2,))

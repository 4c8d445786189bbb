"""Pages, labels and questions agree with each other and with the pixels."""

from __future__ import annotations

import numpy as np
import pytest

from recipes.nano import fonts, labels, questions
from recipes.nano.labels import GRID, PATCH_PX, TileBox
from recipes.nano.pages import VIEW_PX, Page, Style, draw_page
from recipes.nano.vocabulary import CHARACTERS, KEYS, LOCATIONS, location_index


@pytest.fixture(scope="module")
def pages() -> list[Page]:
    try:
        fonts.check_fonts()
    except fonts.FontsMissing as missing:
        pytest.skip(str(missing))
    return [draw_page(np.random.default_rng((5, i))) for i in range(25)]


def test_equal_seeds_give_equal_pages(pages: list[Page]):
    again = draw_page(np.random.default_rng((5, 3)))
    np.testing.assert_array_equal(again.image, pages[3].image)
    assert again.lines == pages[3].lines


def test_keys_are_unique_and_values_printable(pages: list[Page]):
    for page in pages:
        keys = [line.key for line in page.lines]
        assert len(set(keys)) == len(keys)
        assert set(keys) <= set(KEYS)
        assert all(set(line.value) <= set(CHARACTERS) for line in page.lines)


def test_ink_lies_inside_the_box_of_a_line(pages: list[Page]):
    """Columns just left of a line hold no ink, and those of its characters do: the box is where the text is."""
    checked = 0
    for page in pages:
        gray = page.image.mean(axis=2)
        for line in page.lines:
            x0, y0, x1, y1 = (round(v) for v in line.box)
            if x1 > page.width - 2:
                continue
            rows = gray[y0:y1, x0:x1]
            ground = np.median(rows)
            strokes = np.abs(rows - ground).max(axis=0) > 40
            for center in line.centers:
                at = int(center) - x0
                assert strokes[max(0, at - 5) : at + 6].any()
                checked += 1
    assert checked > 300


def test_labels_spell_the_value(pages: list[Page]):
    checked = 0
    for page in pages:
        for line in page.lines:
            if line.box[2] > page.width or line.width_px > VIEW_PX - 6:
                continue
            tile = TileBox(
                min(max(0, int(line.box[0]) - 3), page.width - VIEW_PX),
                min(max(0, int(line.box[1]) - 40), page.height - VIEW_PX),
            )
            if line.box[3] > tile.y1 or line.box[1] < tile.y0:
                continue
            found = labels.tile_labels((line,), tile)
            row = int((line.center_y - tile.y0) // PATCH_PX)
            spelled = "".join(
                CHARACTERS[found[f"char{slot}"][row, col] - 1]
                for col in range(GRID)
                for slot in range(labels.SLOTS)
                if found[f"char{slot}"][row, col] > 0
            )
            assert spelled == line.value
            assert set(found["key"][row][found["key"][row] > 0]) == {1 + KEYS.index(line.key)}
            checked += 1
    assert checked > 60


def test_shape_labels_point_back_at_the_box(pages: list[Page]):
    for page in pages:
        found = labels.global_labels(page)
        assert (found["kind"] > 0).any() == bool(page.shapes)
        for shape in page.shapes:
            x, y = (shape.box[0] + shape.box[2]) / 2, (shape.box[1] + shape.box[3]) / 2
            cell = int(y / page.height * GRID), int(x / page.width * GRID)
            assert LOCATIONS[found["x0"][cell]] == pytest.approx(shape.box[0] / page.width * 1000, abs=10.5)


@pytest.mark.parametrize(("value", "expected"), [(0, 10), (4, 10), (500, 500), (996, 990), (1000, 990)])
def test_locations_are_clipped_to_the_grid(value: int, expected: int):
    assert LOCATIONS[location_index(value, 1000)] == expected


def test_visibility_of_a_line(pages: list[Page]):
    line = next(line for page in pages for line in page.lines if 150 < line.width_px < 200 and line.box[0] > 60)
    x0, y0 = int(line.box[0]), int(line.box[1])
    left, right = TileBox(x0 - 4, y0 - 20), TileBox(x0 - 4 + VIEW_PX, y0 - 20)
    assert questions.visibility(line, [left, right]) is True
    assert questions.visibility(line, [left]) is False
    assert questions.visibility(line, []) is False
    assert questions.visibility(line, [left, TileBox(right.x0 - 6, right.y0)]) is None


def test_at_least_three_pages_in_ten_hold_more_text_than_the_tiles_can_show(pages: list[Page]):
    more = [draw_page(np.random.default_rng((6, i)), Style()) for i in range(60)]
    share = np.mean([page.text_px2 > 6 * VIEW_PX * VIEW_PX for page in more])
    assert share >= 0.3, len(pages)

"""Boxes and points of answers in every dialect, with pixels worked out by hand, and text that is meant to hurt."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_edge.core import discover
from vlm_edge.core.dialects import (
    BRACKETS,
    COMMON,
    FLOATS,
    JSON_PIXELS,
    JSON_THOUSANDTHS,
    LOCATIONS,
    PAIRS,
    POINTS,
    TAGS,
    Dialect,
)
from vlm_edge.vision.grounding import PARSERS, Frames, LabelledBox, LabelledPoint, find_places

Box = tuple[int, int, int, int]
Labelled = list[tuple[str, Box]]
coordinate = st.integers(0, 1000)
side = st.integers(1, 40_000)
ALL = (TAGS, PAIRS, BRACKETS, FLOATS, JSON_PIXELS, JSON_THOUSANDTHS, LOCATIONS, POINTS)


def whole(width: int, height: int, canvas: tuple[int, int] = (1, 1)) -> Frames:
    return Frames((width, height), (0, 0, width, height), canvas)


def boxes(text: str, *dialects: Dialect, frames: Frames | None = None) -> Labelled:
    found, _ = find_places(text, dialects, frames or whole(2000, 1000))
    return [(item.label, item.box) for item in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<box>100,200,300,400</box>", [("", (200, 200, 600, 400))]),
        ("a red circle <box>0,0,1000,1000</box>", [("a red circle", (0, 0, 2000, 1000))]),
        ("one <box>0,0,1,1</box> two <box>1,1,2,2</box>", [("one", (0, 0, 2, 1)), ("two", (2, 1, 4, 2))]),
        ("x > y: <box>0,0,1,1</box>", [("y:", (0, 0, 2, 1))]),
        ("<point>1,2</point> dot <box>0,0,1,1</box>", [("dot", (0, 0, 2, 1))]),
        ("<box><box>0,0,1,1</box>", [("", (0, 0, 2, 1))]),
        ("<box>300,400,100,200</box>", [("", (200, 200, 600, 400))]),
        ("<box>9999,9999,0,0</box>", [("", (0, 0, 2000, 1000))]),
        # InternVL and Qwen-VL, with a name and several boxes
        ("<ref>the cat</ref><box>[[10, 20, 30, 40]]</box>", [("the cat", (20, 20, 60, 40))]),
        ("<ref>cats</ref><box>[[0, 0, 1, 1],[1, 1, 2, 2]]</box>", [("cats", (0, 0, 2, 1)), ("cats", (2, 1, 4, 2))]),
        ("<ref>a dog</ref><box>(10,20),(30,40)</box>", [("a dog", (20, 20, 60, 40))]),
        ("<|object_ref_start|>a dog<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|>", [("a dog", (20, 20, 60, 40))]),
        ("<box>[10,20,30,40]</box>", [("", (20, 20, 60, 40))]),
        ("<box>1,2,3</box>", []),
        ("<box>1,2,3,4,5</box>", []),
        ("<box>(1,2),(3)</box>", []),
        ("<box>-1,2,3,4</box>", []),
        ("<box>1.5,2,3,4</box>", []),
        ("<box>12345,2,3,4</box>", []),
        ("<box>1,2,3,4", []),
        ("<box>1,2,3,4</point>", []),
        ("", []),
    ],
)  # fmt: skip
def test_tags(text: str, expected: Labelled) -> None:
    assert boxes(text, TAGS) == expected


@pytest.mark.parametrize(
    ("text", "dialect", "expected"),
    [
        ("the cat(100,200),(300,400)", PAIRS, [("the cat", (200, 200, 600, 400))]),
        ("one(0,0),(1,1), two (1, 1), (2, 2)", PAIRS, [("one", (0, 0, 2, 1)), ("two", (2, 1, 4, 2))]),
        ("f(1,2) = (3,4)", PAIRS, []),
        ("Here:\nthe cat[[100, 200, 300, 400]]", BRACKETS, [("the cat", (200, 200, 600, 400))]),
        ("cats[[0,0,1,1], [1,1,2,2]]", BRACKETS, [("cats", (0, 0, 2, 1)), ("cats", (2, 1, 4, 2))]),
        ("the numbers are [1, 2, 3, 4]", BRACKETS, []),
        ("[[1, 2], [3, 4]]", BRACKETS, []),
        ("<loc0256><loc0128><loc0512><loc0896> cat", LOCATIONS, [("cat", (250, 250, 1750, 500))]),
        (
            "<loc0000><loc0000><loc0512><loc0512> <seg001><seg127> cat ; <loc0512><loc0512><loc1023><loc1023> two dogs",
            LOCATIONS,
            [("cat", (0, 0, 1000, 500)), ("two dogs", (1000, 500, 1998, 999))],
        ),
        ("<loc0000><loc0000><loc0512> cat", LOCATIONS, []),
    ],
)
def test_other_whole_numbers(text: str, dialect: Dialect, expected: Labelled) -> None:
    assert boxes(text, dialect) == expected


def test_shares_of_a_padded_view_are_shares_of_the_square() -> None:
    # 400 x 200 px, padded by 100 px above and below: the square spans y from -100 to 300
    padded = Frames((400, 200), (0, -100, 400, 300), (336, 336))
    found, _ = find_places("the car [0.25, 0.5, 0.5, 0.75] is red", (FLOATS,), padded)
    assert found == (LabelledBox("the car", (100, 100, 200, 200)),)
    found, _ = find_places("[0.25, 0.1, 0.5, 0.5]", (FLOATS,), padded)
    assert found == (LabelledBox("", (100, 0, 200, 100), clipped=True),)  # 0.1 * 400 - 100 = -60
    found, _ = find_places("[0.25, 0.01, 0.5, 0.2]", (FLOATS,), padded)
    assert found == (LabelledBox("", (100, 0, 200, 0), clipped=True),)  # nothing but padding


def test_shares_of_a_cropped_view_stop_at_its_edge() -> None:
    cropped = Frames((400, 200), (100, 0, 300, 200), (336, 336))  # the middle square
    found, _ = find_places("[0.5, 0.5, 1.0, 1.0]", (FLOATS,), cropped)
    assert found == (LabelledBox("", (200, 100, 300, 200)),)
    found, _ = find_places("[-0.25, 0.5, 1.5, 1.0]", (FLOATS,), cropped)
    assert found == (LabelledBox("", (100, 100, 300, 200), clipped=True),)


@pytest.mark.parametrize(
    "text", ["[1, 0, 0, 1]", "[1, 2, 3, 4]", "[0.1, 0.2, 0.3]", "[0.1, 0.2, 0.3, x]", "0.1, 0.2, 0.3, 0.4"]
)
def test_lists_that_are_no_shares(text: str) -> None:
    assert boxes(text, FLOATS) == []


def test_pixels_of_the_resized_image_are_scaled_back() -> None:
    text = """```json
[
\t{"bbox_2d": [140, 70, 280, 210], "label": "a \\"red\\" car"},
\t{"bbox_2d": [0, 0, 560, 420], "label": "all"},
\t{"point_2d": [280.5, 210], "label": "door"}
]
```"""
    frames = Frames((1120, 630), (0, 0, 1120, 630), (560, 420))  # twice as wide, 1.5 times as high
    found, points = find_places(text, (JSON_PIXELS,), frames)
    assert found == (
        LabelledBox('a "red" car', (280, 105, 560, 315)), LabelledBox("all", (0, 0, 1120, 630)),
    )  # fmt: skip
    assert points == (LabelledPoint("door", (561, 315)),)
    assert boxes(text, JSON_THOUSANDTHS)[0] == ('a "red" car', (280, 70, 560, 210))


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ('{"bbox_2d": [1, 2, 3, 4]}', 1),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "x"}, {"bbox_2d": [1, 2, 3', 1),  # cut short
        ('{"objects": [{"bbox_2d": [1, 2, 3, 4]}]}', 1),
        ('{"bbox_2d": [1, 2, 3, 4], "label": null}', 1),
        ('{"bbox_2d": [1, 2, 3]}', 0),
        ('{"bbox_2d": ["1", 2, 3, 4]}', 0),
        ('{"bbox_2d": [true, 2, 3, 4]}', 0),
        ('{"bbox_2d": [NaN, 2, 3, 4]}', 0),
        ('{"bbox_2d": [Infinity, 2, 3, 4]}', 0),
        ('{"bbox_2d": [1e999, 2, 3, 4]}', 0),
        ('{"bbox_2d": "1, 2, 3, 4"}', 0),
        ('{"bbox": [1, 2, 3, 4]}', 0),
        ("{bbox_2d: [1, 2, 3, 4]}", 0),
        ('{"bbox_2d": [' + "9" * 3000 + ", 2, 3, 4]}", 0),
    ],
)
def test_json_that_is_cut_short_or_holds_no_numbers(entry: str, found: int) -> None:
    assert len(boxes(entry, JSON_PIXELS, frames=whole(100, 100, (100, 100)))) == found


def test_points() -> None:
    frames = whole(2000, 1000)
    text = "<point>500,250</point> and <point>1000,0</point> but not <point>1</point>"
    assert find_places(text, (TAGS,), frames)[1] == (LabelledPoint("", (1000, 250)), LabelledPoint("and", (2000, 0)))
    one = '<point x="61.5" y="40.4" alt="the dog">dog</point>'
    assert find_places(one, (POINTS,), frames) == ((), (LabelledPoint("dog", (1230, 404)),))
    many = 'There: <points x1="10.0" y1="20" x2="110.5" y2="50.0" x3="1" alt="cups"></points>'
    assert find_places(many, (POINTS,), frames)[1] == (
        LabelledPoint("cups", (200, 200)),
        LabelledPoint("cups", (2000, 500), clipped=True),
    )
    assert find_places('<point x="1" alt="no y">', (POINTS,), frames) == ((), ())


@given(coordinate, coordinate, coordinate, coordinate, side, side)
def test_boxes_stay_inside_the_image_and_within_half_a_pixel(a: int, b: int, c: int, d: int, w: int, h: int) -> None:
    ((item,), _) = find_places(f"<box>{a},{b},{c},{d}</box>", (TAGS,), whole(w, h))
    x0, y0, x1, y1 = item.box
    assert 0 <= x0 <= x1 <= w
    assert 0 <= y0 <= y1 <= h
    assert not item.clipped
    for found, share, length in ((x0, min(a, c), w), (y1, max(b, d), h)):
        assert abs(found * 1000 - share * length) <= 500


@given(st.floats(-3, 3), st.floats(-3, 3), side, side, st.integers(-500, 500), st.integers(1, 2000))
def test_what_is_clipped_is_what_lay_outside(x: float, y: float, w: int, h: int, left: int, edge: int) -> None:
    view = (left, left, left + edge, left + edge)
    text = f"[{x:.6f}, {y:.6f}, {x:.6f}, {y:.6f}]"
    (found, _) = find_places(text, (FLOATS,), Frames((w, h), view, (1, 1)))
    for item in found:
        at = [left + float(f"{value:.6f}") * edge for value in (x, y)]
        for value, kept, size in zip(at, item.box[:2], (w, h), strict=True):
            assert 0 <= kept <= size
            if not item.clipped:
                assert abs(kept - value) <= 0.5
                assert left - 0.5 <= value <= left + edge + 0.5


def test_the_first_dialect_that_finds_something_is_taken() -> None:
    text = "<box>0,0,500,500</box> [0.5, 0.5, 1.0, 1.0]"
    assert boxes(text, TAGS, FLOATS) == [("", (0, 0, 1000, 500))]
    assert boxes(text, FLOATS, TAGS) == [("<box>0,0,500,500</box>", (1000, 500, 2000, 1000))]
    assert boxes("nothing", *ALL) == []


def test_every_family_declares_how_it_writes() -> None:
    declared = {name: discover.family(name).dialects for name in discover.names("models")}
    assert declared["llava"] == (TAGS, FLOATS)  # the embedded model's, then LLaVA's own
    assert declared["qwen2_vl"] == (TAGS, PAIRS)
    assert declared["qwen2_5_vl"] == (JSON_PIXELS,)
    assert declared["paligemma"] == (LOCATIONS,)
    assert declared["internvl"] == (TAGS, BRACKETS)
    assert declared["idefics3"] == COMMON
    assert all(dialect.syntax in PARSERS for dialects in declared.values() for dialect in dialects)


@pytest.mark.parametrize(
    "text",
    [
        "x" * 400_000, "<" * 400_000, "[" * 400_000, "{" * 400_000, "(1,1),(" * 60_000, "<box>" * 80_000, "[[1,1,1,1],[" * 40_000,
        "a <box>1,2,3,4</box>" * 20_000, "<box>" + "1," * 200_000, '{"bbox_2d": [1,2,3,4], ' * 20_000, "<loc0001>" * 50_000,
        '<point x="1" ' * 40_000, '<points alt="' + "alt=" * 100_000, "[0.1," * 80_000, "1" * 400_000, "<seg001>" * 50_000,
        '{"bbox_2d": ' + "[" * 3900 + "}", "[[" + " " * 400_000, "<point " + 'x1="1" ' * 50_000 + ">",
    ],
)  # fmt: skip
def test_long_answers_take_no_time(text: str) -> None:
    started = time.perf_counter()
    for dialect in ALL:
        find_places(text, (dialect,), whole(10, 10))
    assert time.perf_counter() - started < 10  # most take 0.1 s; the square of their length would take minutes

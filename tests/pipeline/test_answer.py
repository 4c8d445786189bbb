"""Boxes and points of an answer in source pixels, and the JSON that `run` prints."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_edge.pipeline.answer import Answer, LabelledBox, TokenCounts, find_boxes, find_points
from vlm_edge.vision.tiling import Tile

coordinate = st.integers(0, 1000)
side = st.integers(1, 40_000)


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("<box>100,200,300,400</box>", [("", (200, 200, 600, 400))]),
        ("a red circle <box>0,0,1000,1000</box>", [("a red circle", (0, 0, 2000, 1000))]),
        ("one <box>0,0,1,1</box> two <box>1,1,2,2</box>", [("one", (0, 0, 2, 1)), ("two", (2, 1, 4, 2))]),
        ("x > y: <box>0,0,1,1</box>", [("y:", (0, 0, 2, 1))]),
        ("<point>1,2</point> dot <box>0,0,1,1</box>", [("dot", (0, 0, 2, 1))]),
        ("<box><box>0,0,1,1</box>", [("", (0, 0, 2, 1))]),
        ("<box>300,400,100,200</box>", [("", (200, 200, 600, 400))]),
        ("<box>9999,9999,0,0</box>", [("", (0, 0, 2000, 1000))]),
        ("<box>1,2,3</box>", []),
        ("<box>1,2,3,4,5</box>", []),
        ("<box>-1,2,3,4</box>", []),
        ("<box>12345,2,3,4</box>", []),
        ("<box>1,2,3,4", []),
        ("", []),
    ],
)
def test_boxes_are_found_scaled_and_put_in_order(text: str, boxes: list[tuple[str, tuple[int, int, int, int]]]) -> None:
    assert find_boxes(text, width=2000, height=1000) == tuple(LabelledBox(label, box) for label, box in boxes)


def test_points_are_found_and_scaled() -> None:
    text = "<point>500,250</point> and <point>1000,0</point> but not <point>1</point>"
    assert find_points(text, width=2000, height=1000) == ((1000, 250), (2000, 0))


@given(coordinate, coordinate, coordinate, coordinate, side, side)
def test_boxes_stay_inside_the_image_and_within_half_a_pixel(a: int, b: int, c: int, d: int, w: int, h: int) -> None:
    ((item),) = find_boxes(f"<box>{a},{b},{c},{d}</box>", width=w, height=h)
    x0, y0, x1, y1 = item.box
    assert 0 <= x0 <= x1 <= w
    assert 0 <= y0 <= y1 <= h
    for found, share, length in ((x0, min(a, c), w), (y1, max(b, d), h)):
        assert abs(found * 1000 - share * length) <= 500


@pytest.mark.parametrize("text", ["x" * 400_000, "<" * 400_000, "<box>" * 80_000, "a <box>1,2,3,4</box>" * 20_000])
def test_long_answers_take_no_time(text: str) -> None:
    started = time.perf_counter()
    find_boxes(text, width=10, height=10)
    find_points(text, width=10, height=10)
    assert time.perf_counter() - started < 2


def test_json_has_the_documented_keys_and_plain_numbers() -> None:
    answer = Answer(
        text="42 €",
        tokens=TokenCounts(448, 112, 130, 3),
        tiles=(Tile(1, 2, 113, 114, 0.123456),),
        boxes=(LabelledBox("dot", (1, 2, 3, 4)),),
        points=((5, 6),),
        timings_ms={"load": 1.23456, "total": 2.0},
        planned_peak_bytes=10,
        measured_peak_bytes=9,
        stop_reason="eos",
        bundle="nano",
        device="cpu",
        members=((0, -1),),
    )
    assert json.loads(json.dumps(answer.to_json())) == {
        "answer": "42 €",
        "tokens": {"visual_before": 448, "visual_after": 112, "prompt": 130, "generated": 3},
        "tiles": [{"box": [1, 2, 113, 114], "score": 0.123}],
        "boxes": [{"label": "dot", "box": [1, 2, 3, 4]}],
        "points": [[5, 6]],
        "timings_ms": {"load": 1.23, "total": 2.0},
        "memory": {"planned_peak_bytes": 10, "measured_peak_bytes": 9},
        "stop_reason": "eos",
        "bundle": "nano",
        "device": "cpu",
    }

"""Scores against published intervals and p-values, and overlap against counting unit squares."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_edge.errors import BadInput
from vlm_edge.pipeline.evaluating.metrics import RowOutcome, Score, box_iou, boxes_of, compare, judge, mcnemar, wilson


def outcome(row: str, *, right: bool, iou: float | None = None, error: str = "") -> RowOutcome:
    return RowOutcome(f"id-{row}", row, "page.png", "?", "value", (), "1", right=right, iou=iou, error=error)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (8, 10, 0.490, 0.943),
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_is_the_published_one(right: int, n: int, low: float, high: float) -> None:
    assert wilson(right, n) == pytest.approx((low, high), abs=5e-4 if n == 10 else 5e-5)


@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilson_ends_are_where_the_score_test_just_rejects(n: int, share: float) -> None:
    right = round(share * n)
    for end in wilson(right, n):
        distance, variance = (right / n - end) ** 2, end * (1 - end) / n
        assert distance == pytest.approx(1.959963984540054**2 * variance, abs=1e-12)


def test_wilson_without_data_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (86, 150, 3.716e-05),  # Agresti's approval ratings, as R's exact2x2::mcnemar.exact prints it
        (1, 5, 2 * (1 + 6) / 64),
        (5, 15, 2 * 21700 / 2**20),
        (0, 0, 1.0),
        (10, 10, 1.0),
    ],
)
def test_mcnemar_is_exact(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar(only_a, only_b) == pytest.approx(p, rel=1e-4)
    assert mcnemar(only_b, only_a) == mcnemar(only_a, only_b)


def test_mcnemar_takes_more_rows_than_a_float_can_hold_powers_of_two() -> None:
    assert 0 < mcnemar(2000, 2200) < 0.01


boxes = st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(1, 8), st.integers(1, 8)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(boxes, boxes)
def test_iou_counts_unit_squares(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> None:
    def squares(box: tuple[int, int, int, int]) -> set[tuple[int, int]]:
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    assert box_iou(a, b) == pytest.approx(len(squares(a) & squares(b)) / len(squares(a) | squares(b)))


@pytest.mark.parametrize(
    ("expected", "answer", "right"),
    [
        ("12.50", " 12.50\n", True),
        ("12.50", "12.5", False),
        ("Ab", "ab", False),
        ("", "", True),
        ("red", "<box>1,2,3,4</box>", False),
    ],
)
def test_ordinary_answers_must_be_equal(expected: str, answer: str, right: bool) -> None:
    assert judge(expected, answer) == (right, None)


@pytest.mark.parametrize(
    ("answer", "right", "overlap"),
    [
        ("<box>100,100,200,200</box>", True, 1.0),
        (" <box>100,100,200,150</box> ", True, 0.5),
        ("<box>100,100,200,149</box>", False, 0.49),
        ("<box>300,300,400,400</box>", False, 0.0),
        ("<box>200,200,100,100</box>", False, 0.0),  # corners the wrong way round
        ("<box>100,100,200</box>", False, 0.0),
        ("<box>100,100,200,200", False, 0.0),
        ("<box>100,100,200,200</box><box>1,1,2,2</box>", False, 0.0),
        ("circle <box>100,100,200,200</box>", False, 0.0),
        ("not visible", False, 0.0),
        ("", False, 0.0),
    ],
)
def test_boxes_are_right_from_half_overlap_on(answer: str, right: bool, overlap: float) -> None:
    found, iou = judge("<box>100,100,200,200</box>", answer)
    assert found is right
    assert iou == pytest.approx(overlap)


def test_every_box_must_reach_its_counterpart() -> None:
    two = "a <box>0,0,100,100</box> b <box>0,0,200,100</box>"
    assert judge(two, two) == (True, 1.0)
    right, overlap = judge(two, "a <box>0,0,100,100</box> b <box>0,0,80,100</box>")
    assert not right
    assert overlap == pytest.approx((1 + 0.4) / 2)


def test_damaged_boxes_are_told_from_none() -> None:
    assert boxes_of("no box") == []
    assert boxes_of("<box>1,2,3,4</box>") == [(1, 2, 3, 4)]
    assert boxes_of("<box>1,2,3,x</box>") is None
    assert boxes_of("<box>5,5,5,9</box>") is None


def test_score_counts_errors_as_wrong_and_averages_overlap_of_box_rows() -> None:
    rows = [outcome("a", right=True, iou=0.8), outcome("b", right=False, iou=0.0, error="damaged")]
    rows += [outcome("c", right=True), outcome("d", right=False)]
    score = Score.of(rows)
    assert (score.n, score.right, score.errors, score.accuracy) == (4, 2, 1, 0.5)
    assert score.mean_iou == pytest.approx(0.4)
    assert Score.of(rows[2:]).mean_iou is None
    assert score.to_json()["interval_95"] == [0.15, 0.85]  # Wilson's 2 of 4 by hand: 0.5 -+ 0.34996


def test_compare_pairs_rows_whatever_their_order() -> None:
    a = [outcome("r1", right=True), outcome("r2", right=True), outcome("r3", right=False), outcome("r4", right=False)]
    b = [outcome("r4", right=False), outcome("r3", right=True), outcome("r1", right=True), outcome("r2", right=False)]
    found = compare(a, b)
    assert (found.n, found.only_a, found.only_b, found.p_value) == (4, 1, 1, 1.0)


def test_compare_refuses_runs_over_different_rows() -> None:
    with pytest.raises(BadInput, match="differ in 2 rows"):
        compare([outcome("r1", right=True)], [outcome("r2", right=True)])

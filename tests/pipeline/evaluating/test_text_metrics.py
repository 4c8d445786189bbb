"""Edit distance against plain recursion, ANLS and relaxed numbers against their definitions and worked examples."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_edge.pipeline.evaluating.metrics import is_right, judge
from vlm_edge.pipeline.evaluating.text_metrics import anls, edit_distance, number_of, relaxed_match

words = st.text("ab1.", max_size=7)


def slow_distance(a: str, b: str) -> int:
    """By the definition: the best of removing, inserting and replacing the first character."""

    @cache
    def of(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return len(a) - i + len(b) - j
        if a[i] == b[j]:
            return of(i + 1, j + 1)
        return 1 + min(of(i + 1, j), of(i, j + 1), of(i + 1, j + 1))

    return of(0, 0)


@given(words, words)
def test_distance_is_that_of_the_recursion(a: str, b: str) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == slow_distance(a, b)


@given(st.lists(words, min_size=1, max_size=3), words)
def test_anls_is_the_definition_spelt_out(accepted: list[str], answer: str) -> None:
    similarities = []
    for each in accepted:
        one, other = each.strip().lower(), answer.strip().lower()
        longer = max(len(one), len(other))
        distance = 0.0 if longer == 0 else slow_distance(one, other) / longer
        similarities.append(0.0 if distance > 0.5 else 1 - distance)
    assert anls(accepted, answer) == pytest.approx(max(similarities))


@pytest.mark.parametrize(
    ("accepted", "answer", "score"),
    [
        (["kitten"], "sitting", 1 - 3 / 7),  # the textbook pair, three edits
        (["12.50"], "12.50", 1.0),
        (["12.50"], " 12.5O ", 0.8),
        (["Coca Cola Company", "coca cola"], "COCA COLA", 1.0),
        (["abcd"], "abxy", 0.5),  # exactly half is still a misread text
        (["abcd"], "axyz", 0.0),
        (["abc"], "", 0.0),
        ([""], "", 1.0),
        ([], "x", 0.0),
    ],
)
def test_anls_of_worked_examples(accepted: list[str], answer: str, score: float) -> None:
    assert anls(accepted, answer) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12.0), (" -3.5 ", -3.5), ("+7", 7.0), (".5", 0.5), ("1,250.50", 1250.5), ("$1,250", 1250.0), ("€ 9", 9.0),
        ("-$4", -4.0), ("12%", 0.12), ("12 %", 0.12), ("1e3", 1000.0), ("1E-2", 0.01),
        ("", None), ("twelve", None), ("12 apples", None), ("1,2", None), ("1.2.3", None), ("1-2", None), ("nan", None),
        ("inf", None), ("1e999", None), ("0x10", None), (".", None), ("--5", None),
    ],
)  # fmt: skip
def test_numbers_are_read_and_other_texts_are_not(text: str, value: float | None) -> None:
    assert number_of(text) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("accepted", "answer", "right"),
    [
        (["100"], "105", True),
        (["100"], "95", True),
        (["100"], "105.01", False),
        (["100"], "94.9", False),
        (["-20"], "-21", True),
        (["20"], "-20", False),
        (["0"], "0.0", True),
        (["0"], "0.001", False),
        (["50%"], "0.51", True),
        (["50%"], "50", False),
        (["2019", "2020"], "2021", True),
        (["Red"], "red ", True),
        (["red"], "12", False),
        (["12"], "about 12", False),
    ],
)
def test_relaxed_numbers_may_be_off_by_five_hundredths(accepted: list[str], answer: str, right: bool) -> None:
    assert relaxed_match(accepted, answer) is right


def test_the_metric_decides_what_is_right() -> None:
    assert [is_right(metric, ["100.0"], "100.1") for metric in ("exact", "anls", "relaxed")] == [False, True, True]
    assert [is_right(metric, ["abc"], "ABC") for metric in ("exact", "anls", "relaxed")] == [False, True, True]
    assert judge("a", "b", also=["b"]) == (True, None)
    assert judge("100", "104", metric="relaxed") == (True, None)
    assert judge("100", "104") == (False, None)

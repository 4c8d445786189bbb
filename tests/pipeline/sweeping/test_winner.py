"""The winner by the file's rule, and the fronts against the definition of dominance."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_edge.pipeline.answering.options import AskOptions, Look
from vlm_edge.pipeline.evaluating.evaluate import summarise
from vlm_edge.pipeline.evaluating.metrics import RowOutcome
from vlm_edge.pipeline.sweeping.file import Point, Rule
from vlm_edge.pipeline.sweeping.report import label, markdown, report, verdict
from vlm_edge.pipeline.sweeping.sweep import Swept
from vlm_edge.pipeline.sweeping.winner import judge_sweep

ABOUT = {
    "title": "Sweep | one", "command": "vlm-edge eval", "date": "2026-01-01", "cpu": "a CPU", "threads": 1,
    "versions": {"numpy": "2"}, "images": 9, "rows": 9, "tasks": [], "bad_lines": [],
}  # fmt: skip


def swept(
    name: str, rights: int, tokens: int, *, n: int = 1000, reduce: str = "tome", peak: int = 5, own: bool = False
) -> Swept:
    """The first `rights` of n rows right, each about an image of its own."""
    rows = [
        RowOutcome(
            f"{name}{i}",
            f"r{i}",
            f"{i}.png",
            "?",
            "",
            (),
            "1",
            "1" if i < rights else "0",
            i < rights,
            None,
            64,
            tokens,
        )
        for i in range(n)
    ]
    look = Look("auto", 6, reduce, 0.5, 1.0, 0)
    return Swept(Point(name, "one", AskOptions(), look, own), summarise(rows), 1, peak)


def test_the_fewest_tokens_within_the_limit_win() -> None:
    points = [swept("all", 800, 400), swept("half", 795, 200), swept("quarter", 785, 100), swept("tenth", 600, 40)]
    by_estimate = judge_sweep(points, Rule(1.0, "estimate"))
    assert (by_estimate.best.swept.point.label, by_estimate.winner.swept.point.label) == ("all", "half")
    assert [one.keeps_limit for one in by_estimate.points] == [True, True, False, False]
    assert judge_sweep(points, Rule(1.5, "estimate")).winner.swept.point.label == "quarter"
    assert judge_sweep(points, Rule(20.0, "estimate")).winner.swept.point.label == "tenth"
    assert judge_sweep(points, Rule(0.0, "estimate")).winner.swept.point.label == "all"


def test_by_interval_few_rows_prove_little() -> None:
    points = [swept("all", 800, 400), swept("half", 797, 200)]
    assert judge_sweep(points, Rule(1.0, "interval")).winner.swept.point.label == "half"
    few = [swept("all", 80, 400, n=100), swept("half", 80, 200, n=100)]
    found = judge_sweep(few, Rule(0.5, "interval"))
    assert found.best is found.winner
    # equal accuracy: the cheaper one is the most accurate point itself
    assert found.winner.swept.point.label == "half"
    worse = judge_sweep([few[0], swept("half", 79, 200, n=100)], Rule(1.0, "interval"))
    assert worse.winner.swept.point.label == "all"
    assert "more rows would narrow" in verdict(worse)


def test_a_baseline_that_wins_is_called_one() -> None:
    found = judge_sweep([swept("all", 800, 400), swept("chance", 800, 100, reduce="random")], Rule())
    assert found.winner.swept.point.label == "chance"
    assert "It is a baseline" in verdict(found)
    assert label(found.winner, found) == "chance (baseline, most accurate, winner)"


def test_own_tiles_are_compared_and_neither_best_nor_winner() -> None:
    found = judge_sweep([swept("ideal", 900, 10, own=True), swept("all", 800, 400)], Rule(50, "estimate"))
    assert found.best.swept.point.label == found.winner.swept.point.label == "all"
    assert found.points[0].against_best.mean == pytest.approx(0.1)
    assert not found.points[0].front_tokens


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=7))
def test_fronts_hold_what_nothing_dominates(drawn: list[tuple[int, int, int]]) -> None:
    points = [swept(str(i), rights, tokens, n=6, peak=peak) for i, (rights, tokens, peak) in enumerate(drawn)]
    found = judge_sweep(points, Rule())
    for axis, on in ((1, [one.front_tokens for one in found.points]), (2, [one.front_memory for one in found.points])):
        for i, one in enumerate(drawn):
            dominated = any(
                other[0] >= one[0] and other[axis] <= one[axis] and (other[0], other[axis]) != (one[0], one[axis])
                for other in drawn
            )
            if dominated:
                assert not on[i]
        ends = {(drawn[i][0], drawn[i][axis]) for i in range(len(drawn)) if on[i]}
        undominated = {
            (one[0], one[axis])
            for one in drawn
            if not any(
                other[0] >= one[0] and other[axis] <= one[axis] and (other[0], other[axis]) != (one[0], one[axis])
                for other in drawn
            )
        }
        assert ends == undominated


def test_the_page_has_a_line_for_each_point() -> None:
    found = judge_sweep([swept("all", 800, 400), swept("a|b", 795, 200)], Rule(1.0, "estimate"))
    page = markdown(found, ABOUT, picture="sweep.png")
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + 2
    assert "a\\|b (winner) | 200 | 79.5% | 76.9-81.9% | -0.5 (" in lines[3]
    assert "![" in page
    told = report(found, ABOUT)
    assert [point["label"] for point in told["points"]] == ["all", "a|b"]
    assert (told["best"], told["winner"]) == ("all", "a|b")
    assert told["points"][0]["memory"] == {"planned_peak_bytes": 0, "own_process_peak_bytes": 5, "model_bytes": 1}

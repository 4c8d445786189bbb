"""The page over visual tokens: baselines are scored and paired over the pages that were read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.every_tile import PageAnswers
from benchmarks.visual_tokens import SALIENT, every_tile, paired
from vlm_edge.pipeline.evaluating.metrics import RowOutcome
from vlm_edge.pipeline.evaluating.rows import EvalRow, row_hash
from vlm_edge.pipeline.sweeping.file import load_sweep, open_bundles, points_of

ROWS = [
    EvalRow("a.png", "q1", "1", "value"),
    EvalRow("a.png", "q2", "2", "value"),
    EvalRow("b.png", "q1", "3", "value"),
]
PAGES = [
    PageAnswers("single", "a.png", 640, 9, (("q1", {"not visible": 7, "1": 1, "7": 1}), ("q2", {"5": 2, "2": 1}))),
    PageAnswers("longest", "a.png", 640, 9, (("q1", {"1": 2}), ("q2", {"not visible": 2}))),
    PageAnswers("longest", "b.png", 128, 9, (("q1", {"3": 2}),)),
]


def test_votes_and_upper_bounds_are_counted_over_pages_that_were_read() -> None:
    found = {one.name: one for one in every_tile(PAGES, ROWS)}
    counts = {
        name.replace(" (the longest trained on)", ""): (one.score.n, one.score.right) for name, one in found.items()
    }
    assert counts == {
        "every tile, one a sequence, commonest answer": (2, 1),
        "every tile, one a sequence, any answer right (upper bound)": (2, 2),
        "every tile, six a sequence, commonest answer": (3, 2),
        "every tile, six a sequence, any answer right (upper bound)": (3, 2),
    }
    assert next(one.tokens for name, one in found.items() if "six" in name) == pytest.approx((640 + 640 + 128) / 3)
    assert every_tile([], ROWS) == []


def test_a_point_is_paired_over_the_baselines_rows() -> None:
    rights = (True, True, False)
    outcomes = [
        RowOutcome("", row_hash(row), row.image, row.question, "", (), "1", right=right)
        for row, right in zip(ROWS, rights, strict=True)
    ]
    swept: Any = SimpleNamespace(evaluation=SimpleNamespace(outcomes=outcomes))
    single = every_tile(PAGES, ROWS)[0]
    found = paired(swept, single)
    assert (found.n, found.only_a, found.only_b) == (2, 0, 1)


def test_the_checked_in_sweep_can_be_followed() -> None:
    from benchmarks.visual_tokens import SHOWN_BY_STRATUM, SWEEP
    from vlm_edge import AskOptions

    sweep = load_sweep(SWEEP)
    labels = [point.label for point in points_of(sweep, SWEEP, open_bundles(sweep, SWEEP, None), AskOptions())]
    assert {SALIENT, *SHOWN_BY_STRATUM} <= {*labels}
    assert len(set(labels)) == len(labels)

"""Scores of answers: exact match, ANLS, relaxed numbers or box overlap, a 95% interval, and a paired test. No I/O."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist, fmean
from typing import Any, ClassVar

from vlm_edge.core.layout import Box
from vlm_edge.core.load import OMIT_DEFAULT
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.evaluating.text_metrics import ANLS_LEAST, anls, relaxed_match

METRICS = ("exact", "anls", "relaxed")
"""What may decide that a text is right."""
IOU_LIMIT = 0.5
"""A box is right from this intersection over union on."""
_BOX = re.compile(r"<box>(\d{1,4}),(\d{1,4}),(\d{1,4}),(\d{1,4})</box>")
_Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class RowOutcome:
    """What one row of a data file came to.

    row: hash of the row.  id: hash of the row, its image's content, the options and what answered.  iou: mean over the
    boxes of an answer that should hold some, else None.  visual_before, visual_after: image tokens before and after
    reduction.  error: why there is no answer; then the row is not right.  also: further answers that are accepted.
    """

    id: str
    row: str
    image: str
    question: str
    task: str
    stratum: tuple[str, ...]
    expected: str
    answer: str = ""
    right: bool = False
    iou: float | None = None
    visual_before: int = 0
    visual_after: int = 0
    timings_ms: dict[str, float] = field(default_factory=dict)
    planned_peak_bytes: int = 0
    measured_peak_bytes: int = 0
    error: str = ""
    also: tuple[str, ...] = field(default=(), metadata=OMIT_DEFAULT)
    prompt_tokens: int = 0
    generated_tokens: int = 0
    image_bytes: int = 0
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    @property
    def accepted(self) -> tuple[str, ...]:
        """Every text that is right."""
        return (self.expected, *self.also)


@dataclass(frozen=True)
class Score:
    """Accuracy over n rows with its 95% Wilson interval. Rows that ended in an error count as wrong.

    exact, anls, relaxed: means over the rows that ask for a text, whatever decides that it is right; None without such rows.
    """

    n: int
    right: int
    errors: int
    accuracy: float
    low: float
    high: float
    mean_iou: float | None
    exact: float | None = None
    anls: float | None = None
    relaxed: float | None = None

    @staticmethod
    def of(outcomes: Sequence[RowOutcome]) -> Score:
        """mean_iou is over the rows that ask for a box, 0 for answers of the wrong form; None without such rows."""
        n, right = len(outcomes), sum(outcome.right for outcome in outcomes)
        low, high = wilson(right, n)
        overlaps = [outcome.iou for outcome in outcomes if outcome.iou is not None]
        texts = [outcome for outcome in outcomes if outcome.iou is None]
        return Score(
            n=n,
            right=right,
            errors=sum(bool(outcome.error) for outcome in outcomes),
            accuracy=right / n if n else 0.0,
            low=low,
            high=high,
            mean_iou=fmean(overlaps) if overlaps else None,
            exact=fmean(not o.error and is_right("exact", o.accepted, o.answer) for o in texts) if texts else None,
            anls=fmean(0.0 if o.error else anls(o.accepted, o.answer) for o in texts) if texts else None,
            relaxed=fmean(not o.error and relaxed_match(o.accepted, o.answer) for o in texts) if texts else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Keys of `vlm-edge eval --json`; shares with four digits."""
        return {
            "n": self.n,
            "right": self.right,
            "errors": self.errors,
            "accuracy": round(self.accuracy, 4),
            "interval_95": [round(self.low, 4), round(self.high, 4)],
            "mean_iou": _rounded(self.mean_iou),
            "exact": _rounded(self.exact),
            "anls": _rounded(self.anls),
            "relaxed": _rounded(self.relaxed),
        }


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


@dataclass(frozen=True)
class Comparison:
    """Two runs over the same rows: how many only one of them has right, and McNemar's exact two-sided p."""

    n: int
    only_a: int
    only_b: int
    p_value: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"n": self.n, "only_a": self.only_a, "only_b": self.only_b, "p_value": self.p_value}


def is_right(metric: str, accepted: Sequence[str], answer: str) -> bool:
    """Whether a text is right by one of METRICS: equal, blanks at both ends aside; similar by ANLS_LEAST; or a near number."""
    if metric == "anls":
        return anls(accepted, answer) >= ANLS_LEAST
    if metric == "relaxed":
        return relaxed_match(accepted, answer)
    return any(answer.strip() == each.strip() for each in accepted)


def judge(expected: str, answer: str, *, metric: str = "exact", also: Sequence[str] = ()) -> tuple[bool, float | None]:
    """Whether an answer is right, and its overlap where a box is asked for.

    Ordinary answers are judged by `metric` against `expected` and `also`.  Where `expected` holds boxes, the words around
    them must be equal, the number of boxes too, and each must reach IOU_LIMIT with its counterpart; the overlap is the
    mean IoU, 0 for an answer of the wrong form.
    """
    wanted = boxes_of(expected)
    if not wanted:
        return is_right(metric, (expected, *also), answer), None
    given = boxes_of(answer)
    if given is None or len(given) != len(wanted) or _words(answer) != _words(expected):
        return False, 0.0
    overlaps = [box_iou(a, b) for a, b in zip(wanted, given, strict=True)]
    return min(overlaps) >= IOU_LIMIT, fmean(overlaps)


def boxes_of(text: str) -> list[Box] | None:
    """Every `<box>x0,y0,x1,y1</box>` of a text; None when a tag stands outside that form or a box has no area."""
    found = [(int(m[1]), int(m[2]), int(m[3]), int(m[4])) for m in _BOX.finditer(text)]
    rest = _BOX.sub("", text)
    if "<box>" in rest or "</box>" in rest or any(x0 >= x1 or y0 >= y1 for x0, y0, x1, y1 in found):
        return None
    return found


def _words(text: str) -> list[str]:
    return [part.strip() for part in _BOX.sub("\0", text).split("\0")]


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1) with x0 < x1 and y0 < y1."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def wilson(right: int, n: int) -> tuple[float, float]:
    """95% score interval of a share (Wilson 1927); (0, 1) without data.

    Example: 8 of 10 -> (0.490, 0.943).
    """
    if n == 0:
        return 0.0, 1.0
    share, z2 = right / n, _Z95 * _Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p that the rows only one run has right fell as they did by chance (McNemar 1947, binomial)."""
    n, least = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(least + 1)) / (1 << n))


def compare(rows_a: Sequence[RowOutcome], rows_b: Sequence[RowOutcome]) -> Comparison:
    """Pair two runs row by row; raises BadInput when they are not over the same rows."""
    right_a, right_b = ({outcome.row: outcome.right for outcome in rows} for rows in (rows_a, rows_b))
    if right_a.keys() != right_b.keys():
        differ = len(right_a.keys() ^ right_b.keys())
        raise BadInput(f"the two runs differ in {differ} rows", remedy="evaluate the same data file with both")
    only_a = sum(right_a[row] and not right_b[row] for row in right_a)
    only_b = sum(right_b[row] and not right_a[row] for row in right_a)
    return Comparison(len(right_a), only_a, only_b, mcnemar(only_a, only_b))

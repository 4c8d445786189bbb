"""What a sweep found: each point against the most accurate one, the Pareto fronts, and the winner by the file's rule. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm_edge.core.load import to_plain
from vlm_edge.pipeline.evaluating.paired import Difference, difference
from vlm_edge.pipeline.sweeping.file import Rule
from vlm_edge.pipeline.sweeping.sweep import Swept

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Finding:
    """A point's results.

    against_best: its accuracy less that of the most accurate point, paired.  keeps_limit: whether the rule lets it win.
    front_tokens, front_memory: no other point is as accurate with fewer tokens, or with less memory in a process of its own.
    """

    swept: Swept
    against_best: Difference
    keeps_limit: bool
    front_tokens: bool
    front_memory: bool

    def to_json(self) -> dict[str, Any]:
        """One element of `points` of `eval --sweep --json`."""
        point, found = self.swept.point, self.swept.evaluation.to_json()
        memory = found.pop("memory") | {"own_process_peak_bytes": self.swept.own_peak_bytes}
        memory.pop("measured_peak_bytes")  # the sweep's own, which has asked in every way
        return {
            "label": point.label,
            "bundle": point.bundle,
            "baseline": point.is_baseline,
            "look": {name: value for name, value in to_plain(point.look).items() if name != "tiles"},
            "own_tiles": point.own_tiles,
            **found,
            "memory": memory | {"model_bytes": self.swept.model_bytes},
            "against_best": self.against_best.to_json(),
            "keeps_limit": self.keeps_limit,
            "pareto": {"tokens": self.front_tokens, "memory": self.front_memory},
        }


@dataclass(frozen=True)
class Findings:
    """All points in the file's order; best and winner are among them."""

    points: tuple[Finding, ...]
    best: Finding
    winner: Finding
    rule: Rule


def judge_sweep(swept: Sequence[Swept], rule: Rule) -> Findings:
    """Compare every point with the most accurate one and choose the winner.

    Points that show each row's own tiles are reported, and can be neither: nobody has those where the answer is not known.
    Where every point shows them, they can.
    """
    able = [each for each in swept if not each.point.own_tiles] or list(swept)
    best = min(able, key=lambda each: (-_accuracy(each), _tokens(each)))
    fronts = [_front(able, cost) for cost in (_tokens, _memory)]
    found = []
    for each in swept:
        paired = difference(best.evaluation.outcomes, each.evaluation.outcomes)
        loss = -100 * (paired.low if rule.by == "interval" else paired.mean)
        keeps = each is best or (each in able and loss <= rule.within_points + _ROUNDING)
        found.append(Finding(each, paired, keeps, each in fronts[0], each in fronts[1]))
    winner = min(
        (one for one in found if one.keeps_limit),
        key=lambda one: (_tokens(one.swept), _memory(one.swept), -_accuracy(one.swept)),
    )
    return Findings(tuple(found), next(one for one in found if one.swept is best), winner, rule)


def rule_text(rule: Rule) -> str:
    """The rule in a sentence."""
    how = "by the far end of the paired 95% interval" if rule.by == "interval" else "as measured"
    return (
        "the fewest visual tokens of all points whose loss of accuracy against the most accurate one is at most "
        f"{rule.within_points:g} percentage points, {how}"
    )


def _front(swept: Sequence[Swept], cost: Any) -> list[Swept]:
    """Those that no other one beats or equals in accuracy at a lower cost, or beats at an equal one."""
    front: list[Swept] = []
    for each in sorted(swept, key=lambda one: (cost(one), -_accuracy(one))):
        if not front or _accuracy(each) > _accuracy(front[-1]):
            front.append(each)
    return front


def _accuracy(swept: Swept) -> float:
    return swept.evaluation.overall.accuracy


def _tokens(swept: Swept) -> float:
    return swept.evaluation.visual_after_mean


def _memory(swept: Swept) -> float:
    return swept.own_peak_bytes or swept.evaluation.planned_peak_bytes

"""Markdown tables of evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlm_edge.pipeline.evaluating.evaluate import Evaluation, summarise
from vlm_edge.pipeline.evaluating.metrics import Comparison, RowOutcome, Score

Entry = tuple[str, Evaluation, Mapping[str, Comparison]]
TASKS_SHOWN = ("value", "where", "color", "count", "absent", "other")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, all but the first column aligned to the right."""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [columns, rule, *rows]) + "\n"


def configuration_table(name: str, found: Evaluation, paired: Mapping[str, Comparison]) -> str:
    """Scores by task, then tokens and times, then the paired test against the default."""
    scores = [*found.tasks.items(), ("all", found.overall)]
    lines = [f"\n### {name}\n", table(("task", *_HEAD), [(task, *_cells(score)) for task, score in scores])]
    first, later = (times.get("total", 0.0) for times in (found.first_question_ms, found.later_question_ms))
    lines.append(
        f"Visual tokens {found.visual_before_mean:.0f} -> {found.visual_after_mean:.0f} (mean); "
        f"{first:.0f} ms for the first question about an image, {later:.0f} ms for a further one (median).\n"
    )
    lines += [f"Against the default, {what} questions: {_comparison(c)}.\n" for what, c in paired.items()]
    return "\n".join(lines)


def overview_table(entries: Sequence[Entry]) -> str:
    """One line a configuration: accuracy by task, tokens, and the paired test on value questions."""
    columns = ("configuration", *TASKS_SHOWN, "all", "tokens", "only default : only this (value), p")
    rows = []
    for name, found, paired in entries:
        shares = [_percent(found.tasks[task]) if task in found.tasks else "" for task in TASKS_SHOWN]
        test = paired.get("value")
        against = "" if test is None else f"{test.only_a} : {test.only_b}, {test.p_value:.2g}"
        rows.append((name, *shares, _percent(found.overall), f"{found.visual_after_mean:.0f}", against))
    return f"\n### All configurations, accuracy\n\n{table(columns, rows)}"


def strata_table(name: str, outcomes: Sequence[RowOutcome]) -> str:
    """Scores by stratum."""
    strata = summarise(outcomes).strata
    return f"\n### {name}\n\n{table(('stratum', *_HEAD), [(tag, *_cells(strata[tag])) for tag in sorted(strata)])}"


_HEAD = ("n", "right", "accuracy", "95% interval", "mean IoU")


def _cells(score: Score) -> tuple[str, ...]:
    overlap = "" if score.mean_iou is None else f"{score.mean_iou:.3f}"
    return str(score.n), str(score.right), _percent(score), f"{100 * score.low:.1f}-{100 * score.high:.1f}%", overlap


def _percent(score: Score) -> str:
    return f"{100 * score.accuracy:.1f}%"


def _comparison(found: Comparison) -> str:
    return f"only it {found.only_a}, only this {found.only_b}, of {found.n} (McNemar exact p {found.p_value:.2g})"

"""A sweep's results as JSON and as a Markdown page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_edge.pipeline.sweeping.winner import Finding, Findings, rule_text
from vlm_edge.units import format_bytes

_COLUMNS = (
    "point", "visual tokens", "accuracy", "95% interval", "against the best (paired 95%)", "peak memory", "first ms",
    "further ms", "front",
)  # fmt: skip


def report(findings: Findings, about: Mapping[str, Any]) -> dict[str, Any]:
    """What `eval --sweep --json` prints; about: data, command, date, versions and the like."""
    return {
        **about,
        "rule": rule_text(findings.rule),
        "best": findings.best.swept.point.label,
        "winner": findings.winner.swept.point.label,
        "points": [finding.to_json() for finding in findings.points],
    }


def cells(finding: Finding) -> tuple[str, ...]:
    """A point's line of the table, without its label."""
    found, paired = finding.swept.evaluation, finding.against_best
    score = found.overall
    peak = finding.swept.own_peak_bytes or found.planned_peak_bytes
    first, later = (times.get("total") for times in (found.first_question_ms, found.later_question_ms))
    return (
        f"{found.visual_after_mean:.0f}",
        f"{100 * score.accuracy:.1f}%",
        f"{100 * score.low:.1f}-{100 * score.high:.1f}%",
        f"{100 * paired.mean:+.1f} ({100 * paired.low:+.1f} to {100 * paired.high:+.1f})",
        format_bytes(peak),
        "" if first is None else f"{first:.0f}",
        "" if later is None else f"{later:.0f}",
        " ".join(name for name, on in (("tokens", finding.front_tokens), ("memory", finding.front_memory)) if on),
    )


def columns() -> tuple[str, ...]:
    """Heads of the table."""
    return _COLUMNS


def label(finding: Finding, findings: Findings) -> str:
    """A point's name, with what it is beside a point like any other."""
    marks = [
        word
        for word, on in (
            ("baseline", finding.swept.point.is_baseline),
            ("most accurate", finding is findings.best),
            ("winner", finding is findings.winner),
        )
        if on
    ]
    return finding.swept.point.label + (f" ({', '.join(marks)})" if marks else "")


def verdict(findings: Findings) -> str:
    """The winner and the rule, and whether a baseline won."""
    winner, best = findings.winner, findings.best
    text = f"Winner: {winner.swept.point.label}, by the rule: {rule_text(findings.rule)}."
    if winner is best:
        text += " No point with fewer tokens keeps that limit"
        text += "; more rows would narrow the intervals." if findings.rule.by == "interval" else "."
    if winner.swept.point.is_baseline:
        text += " It is a baseline: nothing beyond it is worth its cost on these rows."
    return text


def markdown(findings: Findings, about: Mapping[str, Any], *, picture: str = "") -> str:
    """The page: what was asked, the table, the winner, and how to read it.  picture: file name of the plot, if there is one."""
    rows = [(label(finding, findings), *cells(finding)) for finding in findings.points]
    score = findings.best.swept.evaluation.overall
    made = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    parts = [
        f"# {about['title']}",
        f"`{about['command']}`",
        f"{about['date']}, {about['cpu']}, {about['threads']} threads; {made}. {score.n} rows about {about['images']} images"
        + (f", tasks {', '.join(about['tasks'])}" if about["tasks"] else "")
        + f", {score.errors} without an answer.",
        table(_COLUMNS, rows),
        verdict(findings),
        "Visual tokens are means over rows. Intervals of accuracy are Wilson's; of differences the wider of Newcombe's paired "
        "interval and a bootstrap over images. The most accurate of many points is so by luck in part. Peak memory is that of a "
        "process that asks this point alone, its most demanding row. Times are medians, of the first question about an image and "
        "of further ones; the vision encoder ran once for points that show the same views, and its time is counted in each. "
        "Front: no other point is as accurate with fewer tokens, or with less memory.",
    ]
    if picture:
        parts.insert(4, f"![Accuracy against visual tokens and peak memory]({picture})")
    return "\n\n".join(parts) + "\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown, all but the first column aligned to the right."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in [heads, rule, *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")

"""The nano model's accuracy against visual tokens on large pages, beside what reads every tile.

    python -m recipes.nano.evaluate make WORK/held_out --pages 40 --per-task 0 --seed 1700000 --sides 896 1792
    python -m benchmarks.every_tile WORK/held_out WORK/every.jsonl
    python -m benchmarks.token_positions WORK/held_out WORK/positions.json
    python -m benchmarks.visual_tokens WORK benchmarks/results/visual_tokens.md

The last one sweeps benchmarks/visual_tokens.yaml into WORK/sweep (and goes on where it was stopped), and writes the page and a
plot beside it. What the second and third have not measured, or not for all pages, the page says.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.every_tile import WAYS, PageAnswers, read_log, vote
from vlm_edge.cli import render
from vlm_edge.core.bundle import atomic_write
from vlm_edge.errors import VlmEdgeError
from vlm_edge.pipeline.evaluating.metrics import RowOutcome, Score
from vlm_edge.pipeline.evaluating.paired import Difference, difference
from vlm_edge.pipeline.evaluating.rows import EvalRow, row_hash
from vlm_edge.pipeline.sweeping import chart as sweep_chart
from vlm_edge.pipeline.sweeping.file import BASELINES
from vlm_edge.pipeline.sweeping.report import cells, columns, label, table, verdict
from vlm_edge.pipeline.sweeping.run import Done, Prepared, Request, prepare, run
from vlm_edge.pipeline.sweeping.sweep import Opening, Swept

SWEEP = Path(__file__).with_name("visual_tokens.yaml")
SALIENT = "salient, 6 tiles, every token"
SHOWN_BY_STRATUM = (SALIENT, "salient, 6 tiles, threshold 0.9", "salient, 6 tiles, tome 0.5", "salient, 6 tiles, landmark 0.5",
                    "salient, 6 tiles, random 0.5")  # fmt: skip
WITHIN_POINTS = 1.0
LEAST_ROWS = 100
"""A baseline that was read on fewer so far is left out: its interval would say nothing."""
EVERY_TILE_NOTE = (
    "The model takes six tiles in a sequence and no more, so every tile is read in many sequences. One: the global view and a "
    "cell of a grid without gaps, which cuts lines. Six: the global view and two tiles side by side in three rows; blocks "
    "overlap by a tile, and come again half a tile further down. Tokens are those of every cell and one global view, once "
    "each, as one long sequence would have them; the sequences read more. The commonest answer leaves out `not visible`; that "
    "any answer is right nobody can know without the truth."
)
POSITION_HEADS = ("reduction", "tokens", "renumbered", "kept", "kept, less renumbered")
POSITIONS_NOTE = (
    "Here each view is reduced by itself; `run` shares what is kept among all views, which is worth most at a quarter. "
    "Reduced tokens are numbered anew in `run`, as the shipped decoder counts its positions itself. The model was trained so, "
    "with merged tokens on three pages of five, which speaks for renumbering here; a model that was trained on every token "
    "may differ. Qwen-VL's positions, which are rows and columns, are kept: its family allows no reduction."
)
NAMES = {
    "single": "every tile, one a sequence",
    "longest": "every tile, six a sequence (the longest trained on)",
}
SCORES: dict[str, Callable[[EvalRow, dict[str, int]], bool]] = {
    "commonest answer": lambda row, given: vote(given).strip() in row.accepted,
    "any answer right (upper bound)": lambda row, given: any(answer.strip() in row.accepted for answer in given),
}


@dataclass(frozen=True)
class Every:
    """A baseline that reads every tile, over the rows of the pages that are done.  tokens: of all tiles and one global view."""

    name: str
    outcomes: tuple[RowOutcome, ...]
    tokens: float

    @property
    def score(self) -> Score:
        return Score.of(self.outcomes)


def every_tile(pages: Sequence[PageAnswers], rows: Sequence[EvalRow]) -> list[Every]:
    """Both ways, each by both scores; none for a way that no page was read in."""
    found = []
    for way in WAYS:
        done = {page.image: page for page in pages if page.way == way}
        own = [row for row in rows if row.image in done]
        given = [dict(done[row.image].answers)[row.question] for row in own]
        for name, is_right in SCORES.items() if own else ():
            outcomes = tuple(
                _outcome(row, is_right(row, answers), done[row.image].tokens)
                for row, answers in zip(own, given, strict=True)
            )
            tokens = sum(done[row.image].tokens for row in own) / len(own)
            found.append(Every(f"{NAMES[way]}, {name}", outcomes, tokens))
    return found


def _outcome(row: EvalRow, right: bool, tokens: int) -> RowOutcome:
    return RowOutcome(
        "", row_hash(row), row.image, row.question, row.task, row.stratum, row.accepted[0], row.accepted[0] if right else "",
        right, visual_after=tokens,
    )  # fmt: skip


def paired(swept: Swept, every: Every) -> Difference:
    """A point less a baseline, over the baseline's rows."""
    wanted = {outcome.row for outcome in every.outcomes}
    return difference(every.outcomes, [outcome for outcome in swept.evaluation.outcomes if outcome.row in wanted])


def page(done: Done, prepared: Prepared, every: Sequence[Every], positions: dict[str, Any] | None, picture: str) -> str:
    """The results as Markdown."""
    by_label = {finding.swept.point.label: finding for finding in done.findings.points}
    salient = by_label[SALIENT].swept
    about, score = done.report, salient.evaluation.overall
    made = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    parts = [
        "# Accuracy against visual tokens, on large pages",
        f"{about['date']}, one thread of {about['cpu']} that other work shared; {made}. The embedded nano model, int4 decoder, "
        f"{score.n} value questions about {about['images']} held-out pages of 896 to 1792 px a side, text of 12 to 16 px. The "
        "model was trained on pages of up to 1344 px, and on six tiles at most. Commands, in this order:",
        "```\n" + "\n".join(_commands()) + "\n```",
        f"![Accuracy against visual tokens and peak memory]({picture})",
        table(columns(), [(label(one, done.findings), *cells(one)) for one in done.findings.points]),
        verdict(done.findings),
        "Accuracy with Wilson's 95% interval; differences over the same rows, with the wider of Newcombe's paired interval and a "
        "bootstrap over pages. Own tiles are those that the generator knows to hold the answer, beside two others: a ceiling "
        "for the choice of tiles. Peak memory is that of a process that asks this point alone; most "
        "of it is the runtime's, and a MiB or two are chance. Times were taken on a busy machine and are no benchmark.",
        "## Every tile",
        _every_text(every, salient),
        "## Aims",
        *_aims(done, salient, every),
        "## Where a baseline wins",
        _baselines(done),
        "## By size of text and page",
        _strata(by_label),
        "## Keep or renumber positions",
        _positions(positions, len(prepared.rows)),
    ]
    return "\n\n".join(parts) + "\n"


def _commands() -> list[str]:
    return [line.strip() for line in (__doc__ or "").splitlines() if line.startswith("    python")]


def _every_text(every: Sequence[Every], salient: Swept) -> str:
    if not every:
        return "Not measured yet on enough rows: `python -m benchmarks.every_tile` goes on where it ended."
    rows = []
    for one in every:
        found, score = paired(salient, one), one.score
        rows.append(
            (
                one.name, f"{one.tokens:.0f}", str(score.n), f"{100 * score.accuracy:.1f}%",
                f"{100 * score.low:.1f}-{100 * score.high:.1f}%", _points(found),
                f"{one.tokens / salient.evaluation.visual_before_mean:.1f}x",
            )
        )  # fmt: skip
    heads = (
        "baseline",
        "visual tokens",
        "rows",
        "accuracy",
        "95% interval",
        f"{SALIENT}, less this",
        "its tokens / salient's",
    )
    return EVERY_TILE_NOTE + "\n\n" + table(heads, rows) + _unfinished(every, salient)


def _unfinished(every: Sequence[Every], salient: Swept) -> str:
    read, asked = min(one.score.n for one in every), salient.evaluation.overall.n
    if read == asked:
        return ""
    return f"\n\nThis part was measured on {read} of {asked} rows so far; `python -m benchmarks.every_tile` goes on where it ended."


def _points(found: Difference) -> str:
    return f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def _aims(done: Done, salient: Swept, every: Sequence[Every]) -> list[str]:
    """Whether each aim is met, by the measured differences, with their intervals."""
    parts = [] if every else ["- Six salient tiles against every tile: not measured yet, see above."]
    for one in every:
        found, ratio = paired(salient, one), one.tokens / salient.evaluation.visual_before_mean
        met = 100 * found.mean >= -WITHIN_POINTS and ratio >= 3
        parts.append(
            f"- Six salient tiles within {WITHIN_POINTS:g} point of {one.name}, with a third of its tokens or fewer: "
            f"{'met' if met else 'not met'} ({_points(found)} points on {found.n} rows, {ratio:.1f} times fewer tokens)."
        )
    for one in done.findings.points:
        if one.swept.point.own_tiles:
            found = difference(one.swept.evaluation.outcomes, salient.evaluation.outcomes)
            parts.append(
                f"- For scale: six salient tiles less the tiles that are known to hold the answer, {_points(found)} points."
            )
    able = [one.swept for one in done.findings.points if one.swept.point.look.max_tiles == 6 and _is_method(one.swept)]
    within = [(one, difference(salient.evaluation.outcomes, one.evaluation.outcomes)) for one in able]
    near = [(one, found) for one, found in within if 100 * found.mean >= -WITHIN_POINTS]
    if near:
        one, found = min(near, key=lambda pair: pair[0].evaluation.visual_after_mean)
        ratio = salient.evaluation.visual_after_mean / one.evaluation.visual_after_mean
        parts.append(
            f"- A further 2x by the best reduction within {WITHIN_POINTS:g} point of every token of six salient tiles: "
            f"{'met' if ratio >= 2 else 'not met'} by {one.point.label} ({_points(found)} points, {ratio:.1f} times fewer tokens)."
        )
    else:
        parts.append(f"- A further 2x by a reduction within {WITHIN_POINTS:g} point: not met, none is within that.")
    return ["\n".join(parts)]


def _is_method(swept: Swept) -> bool:
    look = swept.point.look
    return look.tiling == "auto" and look.reduce not in (*BASELINES, "none")


def _baselines(done: Done) -> str:
    """Every point that a baseline equals or beats with no more tokens."""
    points = [one.swept for one in done.findings.points if not one.swept.point.own_tiles]
    found = []
    for one in points:
        if one.point.is_baseline:
            continue
        for other in points:
            tokens, rival = one.evaluation.visual_after_mean, other.evaluation.visual_after_mean
            score, against = one.evaluation.overall.accuracy, other.evaluation.overall.accuracy
            if other.point.is_baseline and rival <= tokens + 0.5 and against >= score:
                found.append(
                    f"- {other.point.label} ({100 * against:.1f}% at {rival:.0f} tokens) does as well as {one.point.label} "
                    f"({100 * score:.1f}% at {tokens:.0f}) or better."
                )
    return "\n".join(found) or (
        "Nowhere in this table: no point is equalled by `random`, `downsample`, tiles in grid order or the global view alone at as "
        "few tokens."
    )


def _strata(by_label: dict[str, Any]) -> str:
    shown = [name for name in SHOWN_BY_STRATUM if name in by_label]
    strata = by_label[shown[0]].swept.evaluation.strata
    rows = []
    for tag in sorted(strata):
        scores = [by_label[name].swept.evaluation.strata[tag] for name in shown]
        rows.append((tag, str(scores[0].n), *(f"{100 * score.accuracy:.1f}%" for score in scores)))
    return table(("stratum", "rows", *shown), rows)


def _positions(measured: dict[str, Any] | None, asked: int) -> str:
    if measured is None:
        return "Not measured yet: `python -m benchmarks.token_positions`."
    rows = []
    for name, found in measured["reductions"].items():
        kept, anew = (_plain(measured["images"], found[way]) for way in ("kept", "renumbered"))
        tokens = sum(found["tokens"]) / len(found["tokens"])
        shares = [f"{100 * Score.of(one).accuracy:.1f}%" for one in (anew, kept)]
        rows.append((name, f"{tokens:.0f}", *shares, _points(difference(anew, kept))))
    version = importlib.metadata.version("transformers")
    part = "" if measured["rows"] == asked else f" ({measured['rows']} of {asked} rows)"
    return (
        f"The same pages and tiles, the checkpoint's decoder in fp32 in transformers {version}{part}. Tokens count the views' "
        f"markers.\n\n{table(POSITION_HEADS, rows)}\n\n{POSITIONS_NOTE}"
    )


def _plain(images: Sequence[str], rights: Sequence[bool]) -> list[RowOutcome]:
    blank = RowOutcome("", "", "", "", "", (), "1")
    return [
        replace(blank, row=str(i), image=image, right=right)
        for i, (image, right) in enumerate(zip(images, rights, strict=True))
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path, help="the page; the plot lies beside it")
    arguments = parser.parse_args()
    work, out = arguments.work, arguments.out
    request = Request(SWEEP, work / "held_out/questions.jsonl", work / "sweep", opening=Opening(threads=1))
    try:
        prepared = prepare(request)
        with render.progress(SWEEP.stem, prepared.steps) as step:
            done = run(prepared, on_step=step)
        every = [one for one in every_tile(read_log(work / "every.jsonl"), prepared.rows) if one.score.n >= LEAST_ROWS]
        measured = work / "positions.json"
        positions = json.loads(measured.read_text()) if measured.exists() else None
        report = done.report | {"title": "nano, values on pages of 896 to 1792 px"}
        lines = [(one.name, one.score.accuracy, one.tokens) for one in every if "upper bound" not in one.name]
        sweep_chart.draw(report, out.with_suffix(".png"), extra=lines)
        with atomic_write(out) as stream:
            stream.write(page(done, prepared, every, positions, out.with_suffix(".png").name).encode())
    except VlmEdgeError as failure:
        render.error(failure.message, failure.remedy)
        return failure.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The part of `vlm-edge eval` that compares many ways of asking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_edge.cli import render
from vlm_edge.cli.options import typed
from vlm_edge.errors import BadInput

if TYPE_CHECKING:
    from vlm_edge.pipeline.answering.options import AskOptions
    from vlm_edge.pipeline.evaluating.rows import BadLine
    from vlm_edge.pipeline.sweeping.sweep import Opening


def run_sweep(
    file: Path,
    bundle: str | None,
    data: Path,
    *,
    out: Path | None,
    options: AskOptions,
    opening: Opening,
    limit: int | None,
    keep_going: bool,
    as_json: bool,
) -> None:
    """Prepare, ask and show."""
    if out is None:
        raise BadInput("a sweep writes its log, table, plot and recipe to a folder", remedy="name it with --out FOLDER")
    from vlm_edge.pipeline.sweeping import report as sweep_report
    from vlm_edge.pipeline.sweeping import run as sweep_run

    prepared = sweep_run.prepare(
        sweep_run.Request(file, data, out, bundle, options, opening, limit, keep_going, typed())
    )
    show_bad_lines(data, prepared.bad)
    with render.progress(f"{len(prepared.points)} points: {data.name}", prepared.steps) as step:
        done = sweep_run.run(prepared, on_step=step)
    if as_json:
        render.emit_json(done.report)
        return
    findings = done.findings
    render.table(
        done.report["title"],
        sweep_report.columns(),
        [(sweep_report.label(finding, findings), *sweep_report.cells(finding)) for finding in findings.points],
    )
    render.emit(sweep_report.verdict(findings), end="\n")
    resumed = sum(finding.swept.evaluation.resumed for finding in findings.points)
    if resumed:
        render.note(f"{resumed} answers taken from an earlier run")
    written = [out / name for name in (sweep_run.PAGE, sweep_run.PICTURE, sweep_run.RESULTS)]
    render.note(f"written: {', '.join(str(path) for path in [*written, done.recipe] if path is not None)}")


def refuse_options(given: Mapping[str, Any]) -> None:
    """Raise BadInput for the first option that was given though the sweep's file says it. given: by name, None if left out."""
    for name, value in given.items():
        if value not in (None, False):
            raise BadInput(
                f"--sweep says in its file how rows are asked, so {name} chooses nothing", remedy=f"leave {name} out"
            )


def show_bad_lines(data: Path, bad: Sequence[BadLine]) -> None:
    """On stderr, each with its number."""
    for line in bad:
        render.note(f"passed over: {data}:{line.number}: {line.problem}")

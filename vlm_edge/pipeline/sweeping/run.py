"""`eval --sweep` from its file to its results: outcomes, table, plot and recipe in one folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlm_edge import __version__
from vlm_edge.core import host
from vlm_edge.core.bundle import Bundle
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.answering.options import AskOptions
from vlm_edge.pipeline.answering.recipe_options import recipe_of, write_recipe
from vlm_edge.pipeline.evaluating.rows import BadLine, EvalRow, read_rows
from vlm_edge.pipeline.machine import cpu_name, installed
from vlm_edge.pipeline.sweeping import chart as sweep_chart
from vlm_edge.pipeline.sweeping import report as sweep_report
from vlm_edge.pipeline.sweeping.file import Point, SweepFile, load_sweep, open_bundles, points_of
from vlm_edge.pipeline.sweeping.sweep import Opening, locked_log, sweep
from vlm_edge.pipeline.sweeping.winner import Findings, judge_sweep, rule_text
from vlm_edge.pipeline.written import written

LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "numpy", "pillow", "tokenizers")
RESULTS, PAGE, PICTURE = "sweep.json", "sweep.md", "sweep.png"


@dataclass(frozen=True)
class Request:
    """What to compare (file), on which rows (data), and where results go (out).

    bundle: as on the command line, or None.  options: of every point.  command: as it was typed, for the results.
    """

    file: Path
    data: Path
    out: Path
    bundle: str | None = None
    options: AskOptions = field(default_factory=AskOptions)
    opening: Opening = field(default_factory=Opening)
    limit: int | None = None
    keep_going: bool = False
    command: str = ""


@dataclass(frozen=True)
class Prepared:
    """Everything read and checked; steps: rows of all points, and a measurement of each."""

    request: Request
    file: SweepFile
    bundles: Mapping[str, Bundle]
    points: tuple[Point, ...]
    rows: tuple[EvalRow, ...]
    bad: tuple[BadLine, ...]

    @property
    def steps(self) -> int:
        """How often `run` calls on_step."""
        return len(self.points) * (len(self.rows) + 1)


@dataclass(frozen=True)
class Done:
    """report: what --json prints.  recipe: the winner's file; None where the winner shows each row's own tiles."""

    findings: Findings
    report: dict[str, Any]
    recipe: Path | None


def prepare(request: Request) -> Prepared:
    """Read and check file, bundles and rows, before anything is loaded or asked.

    Raises BadInput, DamagedBundle, and MissingDependency where the plot could not be drawn.
    """
    sweep_chart.check_drawing()
    file = load_sweep(request.file)
    if request.out.exists() and not request.out.is_dir():
        raise BadInput(f"{request.out} is no folder", remedy="with --sweep, --out is a folder for all results")
    bundles = open_bundles(file, request.file, request.bundle)
    points = points_of(file, request.file, bundles, request.options)
    bad: list[BadLine] = []
    need_tiles = any(point.own_tiles for point in points)
    rows = read_rows(request.data, need_tiles=need_tiles, on_bad=bad.append if request.keep_going else None)
    asked = tuple(row for row in rows if not file.tasks or row.task in file.tasks)[: _limit(request)]
    if not asked:
        raise BadInput(
            f"{request.data} has no row of the tasks {', '.join(file.tasks)}", remedy=f"correct tasks in {request.file}"
        )
    return Prepared(request, file, bundles, points, asked, tuple(bad))


def _limit(request: Request) -> int | None:
    if request.limit is not None and request.limit < 1:
        raise BadInput(f"--limit {request.limit} is not allowed", remedy="use 1 or more")
    return request.limit


def run(prepared: Prepared, on_step: Callable[[], None] = lambda: None) -> Done:
    """Ask what is not in the folder's log yet, and write sweep.json, sweep.md, sweep.png and the winner's recipe."""
    request = prepared.request
    with locked_log(request.out) as log:
        swept = sweep(
            prepared.points, prepared.rows, root=request.data.parent, bundles=prepared.bundles, opening=request.opening, log=log,
            keep_going=request.keep_going, on_step=on_step,
        )  # fmt: skip
        findings = judge_sweep(swept, prepared.file.winner)
        recipe = _write_winner(prepared, findings)
        about = _about(prepared) | {"recipe": None if recipe is None else str(recipe)}
        report = sweep_report.report(findings, about)
        sweep_chart.draw(report, request.out / PICTURE)
        _write(request.out / PAGE, sweep_report.markdown(findings, about, picture=PICTURE))
        _write(request.out / RESULTS, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return Done(findings, report, recipe)


def _about(prepared: Prepared) -> dict[str, Any]:
    request = prepared.request
    return {
        "title": f"Sweep {request.file.stem} on {request.data.name}",
        "sweep": str(request.file),
        "data": str(request.data),
        "rows": len(prepared.rows),
        "images": len({row.paths for row in prepared.rows}),
        "tasks": list(prepared.file.tasks),
        "bundles": {name: str(bundle.root) for name, bundle in prepared.bundles.items()},
        "bad_lines": [{"line": line.number, "problem": line.problem} for line in prepared.bad],
        "command": request.command,
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_name(),
        "threads": request.opening.threads or host.real_cores(),
        "versions": {"vlm-edge": __version__, **installed(LIBRARIES)},
    }


def _write_winner(prepared: Prepared, findings: Findings) -> Path | None:
    """A recipe named after sweep file and bundle, so that name and file agree."""
    point, found = findings.winner.swept.point, findings.winner.swept.evaluation
    if point.own_tiles:
        return None
    bundle = prepared.bundles[point.bundle]
    path = prepared.request.out / f"{bundle.manifest.name}-{prepared.request.file.stem}.yaml"
    score = found.overall
    remarks = (
        f"The winner of {prepared.request.file.name} on {prepared.request.data.name}: {point.label}.",
        f"{score.right} of {score.n} right ({100 * score.low:.1f}-{100 * score.high:.1f}%) with "
        f"{found.visual_after_mean:.0f} visual tokens on average.",
        f"Rule: {rule_text(findings.rule)}.",
    )
    write_recipe(recipe_of(bundle, point.look, path.stem), path, remarks)
    return path


def _write(path: Path, text: str) -> None:
    with written(path) as stream:
        stream.write(text.encode())

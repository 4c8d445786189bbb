"""vlm-edge eval [BUNDLE] DATA.jsonl"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm_edge import __version__
from vlm_edge.cli import render
from vlm_edge.cli.options import (
    AsJson,
    Budget,
    Device,
    Keep,
    MaxNewTokens,
    MaxPixels,
    MaxTiles,
    Reduce,
    Saliency,
    SaliencyModel,
    Seed,
    Threads,
    Threshold,
    Tiling,
    Verify,
)
from vlm_edge.errors import BadInput
from vlm_edge.units import format_bytes

if TYPE_CHECKING:
    from vlm_edge.pipeline.evaluating.evaluate import Evaluation
    from vlm_edge.pipeline.evaluating.metrics import Score

EXAMPLE = "vlm-edge eval questions.jsonl, or vlm-edge eval out/ questions.jsonl"
COLUMNS = ("", "rows", "right", "accuracy", "95% interval", "exact", "ANLS", "relaxed", "mean IoU")

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="[BUNDLE] DATA.jsonl",
        help="Bundle folder (default: nano, the embedded model); then the data file, as described above.",
        show_default=False,
    ),
]
Limit = Annotated[int | None, typer.Option(help="Only the first N rows.")]
TilesFromData = Annotated[bool, typer.Option("--tiles-from-data", help="Show each row's own tiles.")]
KeepGoing = Annotated[
    bool, typer.Option("--keep-going", help="Pass over bad lines, count a row that fails as wrong, and go on.")
]
Out = Annotated[
    Path | None,
    typer.Option(help="Append each row's outcome to this .jsonl (with --sweep: a folder); a second run continues it."),
]
Sweep = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="YAML file that says which tilings, reductions and bundles to compare; needs --out.",
        show_default=False,
    ),
]


def evaluate(
    inputs: Inputs,
    tiling: Tiling = None,
    max_tiles: MaxTiles = None,
    saliency: Saliency = None,
    saliency_model: SaliencyModel = None,
    reduce: Reduce = None,
    keep: Keep = None,
    threshold: Threshold = None,
    max_new_tokens: MaxNewTokens = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    budget: Budget = None,
    max_pixels: MaxPixels = None,
    verify: Verify = False,
    limit: Limit = None,
    tiles_from_data: TilesFromData = False,
    keep_going: KeepGoing = False,
    out: Out = None,
    sweep: Sweep = None,
    as_json: AsJson = False,
) -> None:
    """Ask a bundle every question of a data file and report how many answers are right.

    A row: {"image": "page.png", "question": "what is the total?", "answer": "12.50", "task": "value"}; image is
    relative to the data file; task, stratum (a list) and tiles (a list of boxes) are optional. An answer must match
    exactly, or as "metric" says (anls, relaxed); one with a box must overlap it with an IoU of at least 0.5. "images"
    and "answers" are lists in place of the single ones, "box" [x0, y0, x1, y1] in pixels is in place of an answer.

    --sweep compares many ways of asking, and writes a table, a plot and the winner as a recipe: points: [{tiling: [auto],
    max_tiles: [2, 6], reduce: [none, tome], keep: [0.5, 0.25]}]; also bundles, tasks and winner.

    Example: vlm-edge eval questions.jsonl --reduce threshold --threshold 0.9
    """
    if len(inputs) > 2:
        raise BadInput(f"{len(inputs)} words, but a bundle and a data file are all it takes", remedy=EXAMPLE)
    bundle, data = inputs[0] if len(inputs) == 2 else None, Path(inputs[-1])
    from vlm_edge.cli.sweep import refuse_options, run_sweep, show_bad_lines
    from vlm_edge.core.load import to_plain
    from vlm_edge.pipeline.answering.options import AskOptions
    from vlm_edge.pipeline.evaluating.rows import BadLine, OutcomeLog, read_rows

    if sweep is not None:
        refuse_options(
            {
                "--tiling": tiling, "--max-tiles": max_tiles, "--saliency": saliency, "--saliency-model": saliency_model,
                "--reduce": reduce, "--keep": keep, "--threshold": threshold, "--seed": seed or None,
                "--tiles-from-data": tiles_from_data,
            }
        )  # fmt: skip
        from vlm_edge.pipeline.sweeping.sweep import Opening

        run_sweep(
            sweep, bundle, data, out=out, options=AskOptions(max_new_tokens=max_new_tokens, max_pixels=max_pixels),
            opening=Opening(device, threads, budget, verify), limit=limit, keep_going=keep_going, as_json=as_json,
        )  # fmt: skip
        return

    options = AskOptions(
        tiling=tiling,
        max_tiles=max_tiles,
        reduce=reduce,
        keep=keep,
        threshold=threshold,
        max_new_tokens=max_new_tokens,
        seed=seed,
        max_pixels=max_pixels,
        tiles=() if tiles_from_data else None,
        saliency=saliency,
        saliency_model=saliency_model,
    )
    bad: list[BadLine] = []
    rows = read_rows(data, limit=limit, need_tiles=tiles_from_data, on_bad=bad.append if keep_going else None)
    show_bad_lines(data, bad)
    log = OutcomeLog(out)

    from vlm_edge.pipeline.answering.run import Pipeline
    from vlm_edge.pipeline.evaluating import evaluate as evaluation

    pipeline = Pipeline.load(bundle, device=device, threads=threads, budget=budget, verify=verify)
    manifest = pipeline.bundle.manifest
    with render.progress(f"{manifest.name}: {data.name}", len(rows)) as step:
        result = evaluation.evaluate(
            pipeline,
            rows,
            options,
            root=data.parent,
            asked_of=f"{manifest.self_sha256} {pipeline.device} {__version__}",
            tiles_from_data=tiles_from_data,
            keep_going=keep_going,
            log=log,
            on_row=step,
        )
    chosen = {name: value for name, value in to_plain(options).items() if value is not None and name != "tiles"}
    if as_json:
        about: dict[str, Any] = {"bundle": manifest.name, "device": pipeline.device, "data": str(data)}
        passed_over = {"bad_lines": [{"line": line.number, "problem": line.problem} for line in bad]}
        options_told = {"options": chosen | {"tiles_from_data": tiles_from_data}}
        render.emit_json(about | options_told | passed_over | result.to_json())
        return
    _show(f"{manifest.name} on {data.name}", result)


def _show(title: str, result: Evaluation) -> None:
    """The table and what it cost on stdout, rows that failed on stderr."""
    scores = [*result.tasks.items(), ("all", result.overall)]
    scores += [(f"stratum {tag}", score) for tag, score in sorted(result.strata.items())]
    render.table(title, COLUMNS, [(name, *_cells(score)) for name, score in scores])
    tokens = f"{result.visual_before_mean:.0f} -> {result.visual_after_mean:.0f}"
    others = f"prompt {result.prompt_mean:.0f}, answer {result.generated_mean:.1f}"
    peak, size = format_bytes(result.measured_peak_bytes), format_bytes(round(result.image_bytes_mean))
    render.emit(f"visual tokens, mean: {tokens}; {others}; image files, mean: {size}; peak memory: {peak}", end="\n")
    stages = (
        ("first question about an image", result.first_question_ms),
        ("further question", result.later_question_ms),
    )
    for what, times in stages:
        if times:
            render.emit(f"{what}, median ms: {', '.join(f'{k} {v:.0f}' for k, v in times.items())}", end="\n")
    if result.resumed:
        render.note(f"{result.resumed} rows taken from an earlier run")
    for outcome in result.outcomes:
        if outcome.error:
            render.note(f"failed: {outcome.image}, {outcome.question!r}: {outcome.error}")


def _cells(score: Score) -> tuple[str, ...]:
    overlap = "" if score.mean_iou is None else f"{score.mean_iou:.3f}"
    interval = f"{100 * score.low:.1f}-{100 * score.high:.1f}%"
    texts = ("" if share is None else f"{100 * share:.1f}%" for share in (score.exact, score.anls, score.relaxed))
    return str(score.n), str(score.right), f"{100 * score.accuracy:.1f}%", interval, *texts, overlap

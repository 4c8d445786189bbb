"""vlm-edge batch INPUT OUT.jsonl"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm_edge.cli import render
from vlm_edge.cli.options import (
    AsJson,
    Budget,
    BundleOption,
    Device,
    Keep,
    MaxNewTokens,
    MaxPixels,
    MaxTiles,
    Reduce,
    Seed,
    Threads,
    Threshold,
    Tiling,
    Verify,
)
from vlm_edge.errors import BadInput
from vlm_edge.units import format_bytes

if TYPE_CHECKING:
    from vlm_edge.pipeline.answering.options import AskOptions
    from vlm_edge.pipeline.batch_inference.batch import Engine, Loading
    from vlm_edge.pipeline.batch_inference.input import BatchInput

ENGINES = ("local", "ray")


def _engines() -> list[str]:
    return list(ENGINES)


Input = Annotated[
    Path, typer.Argument(metavar="INPUT", help="JSON Lines file, or folder of images.", show_default=False)
]
Out = Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="One line a row is appended to it.", show_default=False)]
Question = Annotated[
    str, typer.Option(help="For a folder's images, and for rows without a question.", show_default=False)
]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        help="local, or ray: the cluster of RAY_ADDRESS, else workers on this machine; needs the ray extra.",
        autocompletion=_engines,
    ),
]
Workers = Annotated[int, typer.Option(help="Pipelines of --engine ray; they share --threads' default and --budget.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Ask rows that failed in an earlier run again.")]


def batch(
    source: Input,
    out: Out,
    question: Question = "",
    bundle: BundleOption = None,
    tiling: Tiling = None,
    max_tiles: MaxTiles = None,
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
    engine: EngineName = "local",
    workers: Workers = 2,
    retry_failed: RetryFailed = False,
    as_json: AsJson = False,
) -> None:
    """Answer the questions of a file, or one question about every image of a folder, and go on where a run was ended.

    A row: {"image": "page.png", "question": "what is the total?", "id": "a1"}, or "images" with a list; images are
    relative to the file, id is optional. In each worker rows run one after another: a decoder here holds one sequence.
    A row of OUT has its row number and id and what `run --json` prints, or error and fix. The same command again goes
    on behind what OUT holds, whatever ended it.

    Exit code 0: every row has an answer; 1: some failed.

    Example: vlm-edge batch questions.jsonl answers.jsonl; or vlm-edge batch scans/ answers.jsonl --question "what is the
    total?"
    """
    if engine not in ENGINES:
        raise BadInput(f"--engine has no value {engine!r}", remedy=f"use one of: {', '.join(ENGINES)}")
    from vlm_edge.pipeline.answering.options import AskOptions
    from vlm_edge.pipeline.answering.preflight import choose_device, find_bundle
    from vlm_edge.pipeline.batch_inference import batch as batching
    from vlm_edge.pipeline.batch_inference.input import BatchInput
    from vlm_edge.pipeline.batch_inference.log import BatchLog
    from vlm_edge.pipeline.embedded import EMBEDDED
    from vlm_edge.units import parse_bytes

    options = AskOptions(
        tiling=tiling, max_tiles=max_tiles, reduce=reduce, keep=keep, threshold=threshold,
        max_new_tokens=max_new_tokens, seed=seed, max_pixels=max_pixels,
    )  # fmt: skip
    rows = BatchInput(source, question)
    if source.exists() and out.exists() and source.samefile(out):
        raise BadInput(f"{out} is the input itself", remedy="name another OUT")
    limit = None if budget is None else parse_bytes(budget)
    if engine == "ray":
        from vlm_edge.pipeline.batch_inference.ray_engine import check_ray

        check_ray(workers)
        limit = None if limit is None else limit // workers
    opened = find_bundle(bundle)
    manifest, chosen = opened.manifest, choose_device(opened, device)
    of = batching.asked_of(manifest.self_sha256, options)
    folder = None if bundle is None or str(bundle) == EMBEDDED else str(opened.root.absolute())
    loading = batching.Loading(folder, chosen, threads, limit, verify)
    with BatchLog.open(out, retry_failed=retry_failed) as log:
        total = batching.count_rows(rows, log, of)
        if log.done:
            render.note(f"{log.done} of {total} rows are there already")
        with render.progress(f"{manifest.name}: {source.name}", total) as step:
            answering = _engine(engine, loading, options, rows, workers) if log.done < total else None
            summary = batching.run_batch(rows, log, answering, of=of, total=total, on_row=step)
    plain = {"bundle": manifest.name, "device": chosen, "engine": engine, "workers": workers if engine == "ray" else 1}
    plain |= {"out": str(out), **summary.to_json()}
    if as_json:
        render.emit_json(plain)
    else:
        _show(plain)
    if summary.failed:
        raise typer.Exit(1)


def _engine(name: str, loading: Loading, options: AskOptions, rows: BatchInput, workers: int) -> Engine:
    if name == "ray":
        from vlm_edge.pipeline.batch_inference.ray_engine import RayEngine

        return RayEngine(loading, options, str(rows.root), workers=workers)
    from vlm_edge.pipeline.batch_inference.batch import Answerer, LocalEngine

    return LocalEngine(Answerer(loading, options, str(rows.root)))


def _show(plain: dict[str, Any]) -> None:
    rate = f", {plain['rows_per_s']:.2f} rows a second" if plain["rows_per_s"] else ""
    memory = plain["memory"]
    cells = [
        ("rows", str(plain["rows"])),
        ("answered", str(plain["answered"])),
        ("failed", str(plain["failed"])),
        ("from earlier runs", str(plain["resumed"])),
        ("time", f"{plain['seconds']:.1f} s{rate}"),
        ("tokens generated now", str(plain["generated_tokens"])),
    ]
    if memory["planned_peak_bytes"]:
        planned, measured = (format_bytes(memory[f"{name}_peak_bytes"]) for name in ("planned", "measured"))
        cells.append(("peak memory", f"{planned} planned, {measured} measured"))
    render.table(f"{plain['bundle']} on {plain['device']} -> {plain['out']}", ("what", "value"), cells)
    for failure in plain["failures"]:
        render.note(f"failed: row {failure['row']} ({failure['id']}): {failure['error']}")
    beyond = plain["failed"] - len(plain["failures"])
    if beyond > 0:
        render.note(f"{beyond} more rows of OUT failed; --retry-failed asks them again")

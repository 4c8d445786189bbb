"""Accuracy of the nano model on held-out pages.

    python -m recipes.nano.evaluate make OUT --pages 260 --seed 1000000
    python -m recipes.nano.evaluate run OUT --bundle DIR --results FILE.json

`run` compares tilings, decoders and reductions over the same questions, each reduction beside random choice and
downsampling at the same number of tokens. It can be stopped and started again: answers are kept under OUT/rows/.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlm_edge import __version__
from vlm_edge.cli import render
from vlm_edge.core import discover
from vlm_edge.core.bundle import atomic_write, hash_file
from vlm_edge.core.load import to_plain
from vlm_edge.errors import CheckFailed, VlmEdgeError
from vlm_edge.pipeline.answering.options import AskOptions, Look
from vlm_edge.pipeline.answering.run import Pipeline
from vlm_edge.pipeline.evaluating.evaluate import Evaluation, evaluate
from vlm_edge.pipeline.evaluating.metrics import Comparison, compare
from vlm_edge.pipeline.evaluating.rows import EvalRow, OutcomeLog, read_rows
from vlm_edge.pipeline.machine import cpu_name, installed

from .fonts import FontsMissing
from .held_out import make
from .pages import MAX_PAGE_PX, MIN_PAGE_PX
from .report import configuration_table, overview_table, strata_table

LEAST_CROWDED = 0.3
DEFAULT = "salient tiles (default)"
THRESHOLDS = (0.95, 0.9, 0.8)
LIBRARIES = ("numpy", "pillow", "tokenizers", "onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True)
class Result:
    """One configuration's evaluation; against_default: the default first, on all questions and on value questions."""

    name: str
    bundle: str
    options: dict[str, Any]
    evaluation: Evaluation
    against_default: dict[str, Comparison] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        head = {"name": self.name, "bundle": self.bundle, "options": self.options}
        paired = {what: found.to_json() for what, found in self.against_default.items()}
        return head | self.evaluation.to_json() | {"against_default": paired}


class Measurements:
    """All configurations over the same rows; each is printed as soon as it is done."""

    def __init__(self, folder: Path, rows: Sequence[EvalRow]) -> None:
        self.folder, self.rows = folder, rows
        self.results: list[Result] = []
        self._known: dict[tuple[str, Look, bool], Evaluation] = {}

    def measure(self, pipeline: Pipeline, name: str, options: AskOptions) -> Evaluation:
        """Evaluate one configuration, or repeat what an equal one gave. Empty `tiles`: each row's own."""
        manifest = pipeline.bundle.manifest
        own_tiles = options.tiles is not None
        family = discover.family(manifest.model.family)
        look = Look.of(options, manifest.defaults, manifest.limits.max_tiles, family)
        key = (manifest.self_sha256, look, own_tiles)
        if key not in self._known:
            slug = "-".join("".join(c if c.isalnum() or c == "." else " " for c in name).split())
            with render.progress(name, len(self.rows)) as step:
                self._known[key] = evaluate(
                    pipeline,
                    self.rows,
                    options,
                    root=self.folder,
                    asked_of=f"{manifest.self_sha256} {pipeline.device} {__version__}",
                    tiles_from_data=own_tiles,
                    log=OutcomeLog(self.folder / "rows" / f"{slug}.jsonl"),
                    on_row=step,
                )
        found = self._known[key]
        chosen = {k: v for k, v in to_plain(options).items() if v is not None and k != "tiles"}
        result = Result(name, manifest.name, chosen | {"tiles_from_data": own_tiles}, found, self._paired(found))
        self.results.append(result)
        print(configuration_table(name, found, result.against_default), flush=True)
        return found

    def _paired(self, found: Evaluation) -> dict[str, Comparison]:
        if not self.results:
            return {}
        default = self.results[0].evaluation
        if found is default:
            return {}
        both = (default.outcomes, found.outcomes)
        values = [[outcome for outcome in outcomes if outcome.task == "value"] for outcomes in both]
        return {"all": compare(*both), "value": compare(*values)}


def measure_all(
    measurements: Measurements, bundle: Path, fp32: Path | None, thresholds: Sequence[float], threads: int | None
) -> None:
    """Tilings, then merging at each threshold beside its baselines, then the decoder that was not rounded."""
    pipeline = Pipeline.load(bundle, threads=threads)
    tokens = pipeline.bundle.manifest.model.geometry.tokens_per_view
    measurements.measure(pipeline, DEFAULT, AskOptions())
    measurements.measure(pipeline, "global view only", AskOptions(tiling="none"))
    measurements.measure(pipeline, "oracle tiles", AskOptions(tiles=()))
    measurements.measure(pipeline, "grid tiles", AskOptions(tiling="grid"))
    measurements.measure(pipeline, "salient tiles, no merging", AskOptions(reduce="none"))
    for threshold in thresholds:
        merged = measurements.measure(
            pipeline, f"salient tiles, merging above {threshold}", AskOptions(reduce="threshold", threshold=threshold)
        )
        share = merged.visual_after_mean / merged.visual_before_mean
        # Up to whole tokens of a view: the baselines never have fewer than the merging that they are held against.
        keep = math.ceil(share * tokens - 1e-9) / tokens
        for method in ("random", "downsample"):
            name = f"salient tiles, {method} to {keep:.3f}"
            measurements.measure(pipeline, name, AskOptions(reduce=method, keep=keep))
    if fp32 is not None:
        measurements.measure(Pipeline.load(fp32, threads=threads), "salient tiles, fp32 decoder", AskOptions())


def run(arguments: argparse.Namespace) -> None:
    folder: Path = arguments.out
    data = folder / "questions.jsonl"
    measurements = Measurements(folder, read_rows(data, limit=arguments.limit, need_tiles=True))
    measure_all(measurements, arguments.bundle, arguments.fp32_bundle, arguments.thresholds, arguments.threads)
    results = measurements.results
    print(overview_table([(r.name, r.evaluation, r.against_default) for r in results]))
    values = [outcome for outcome in results[0].evaluation.outcomes if outcome.task == "value"]
    print(strata_table(f"{DEFAULT}, value questions by stratum", values))
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python -m recipes.nano.evaluate {shlex.join(sys.argv[1:])}",
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "versions": versions(),
        "data": {
            "rows": len(measurements.rows),
            "sha256": hash_file(data),
            **json.loads((folder / "about.json").read_text()),
        },
        "configurations": [result.to_json() for result in results],
    }
    with atomic_write(arguments.results) as stream:
        stream.write(json.dumps(report, indent=1).encode() + b"\n")


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "vlm-edge": __version__} | installed(LIBRARIES)


def draw(arguments: argparse.Namespace) -> None:
    made = make(
        arguments.out, pages=arguments.pages, seed=arguments.seed, per_task=arguments.per_task,
        held_out_typefaces=arguments.held_out_typefaces, sides_px=tuple(arguments.sides),
    )  # fmt: skip
    print(f"{made.pages} pages; questions: {', '.join(f'{task} {n}' for task, n in made.questions.items())}")
    print(f"crowded (more text than all tiles can cover): {100 * made.crowded_share:.1f}% of pages")
    if made.crowded_share < LEAST_CROWDED:
        raise CheckFailed(
            f"under {LEAST_CROWDED:.0%} of the pages are crowded", remedy="draw more pages, or another --seed"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    making = commands.add_parser("make", help="draw pages and questions")
    making.add_argument("out", type=Path)
    making.add_argument("--pages", type=int, default=260)
    making.add_argument("--seed", type=int, default=1_000_000)
    making.add_argument("--per-task", type=int, default=500, help="draw further pages until each task has so many")
    making.add_argument("--held-out-typefaces", action="store_true", help="only typefaces that training never shows")
    making.add_argument(
        "--sides",
        type=int,
        nargs=2,
        default=(MIN_PAGE_PX, MAX_PAGE_PX),
        metavar="PX",
        help="least and most of pages' sides",
    )
    making.set_defaults(call=draw)
    running = commands.add_parser("run", help="evaluate a bundle in every configuration")
    running.add_argument("out", type=Path, help="what `make` wrote")
    running.add_argument("--bundle", type=Path, required=True)
    running.add_argument("--fp32-bundle", type=Path, help="the same model with a decoder that was not rounded")
    running.add_argument("--results", type=Path, required=True, help="JSON file to write")
    running.add_argument("--thresholds", type=float, nargs="+", default=THRESHOLDS)
    running.add_argument("--threads", type=int)
    running.add_argument("--limit", type=int, help="only the first N questions")
    running.set_defaults(call=run)
    arguments = parser.parse_args()
    try:
        arguments.call(arguments)
    except FontsMissing as failure:
        render.error(str(failure), "run that command")
        return 2
    except VlmEdgeError as failure:
        render.error(failure.message, failure.remedy)
        return failure.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

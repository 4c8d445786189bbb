"""The steps of `build`: what each depends on, and how it is done with what export, quantize, verify and plan already are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlm_edge.core import discover
from vlm_edge.core.bundle import (
    MANIFEST,
    ArtifactRef,
    Bundle,
    Manifest,
    hash_file,
    open_bundle,
    write_manifest,
)
from vlm_edge.core.bundle_writer import checked, locked
from vlm_edge.core.calibration import SAMPLES
from vlm_edge.core.load import to_plain
from vlm_edge.core.recipe import Recipe
from vlm_edge.errors import CheckFailed
from vlm_edge.pipeline.building.plan import EXPORT, MEASURE, QUANTIZE, VERIFY, Effort
from vlm_edge.pipeline.building.record import fingerprint, touched
from vlm_edge.pipeline.checking.verify import verify_bundle, write_report
from vlm_edge.pipeline.exporting.export import ALL_COMPONENTS, COMPONENTS, ExportOptions, export_model
from vlm_edge.pipeline.exporting.hub import SMALL_FILES
from vlm_edge.pipeline.exporting.source import Source
from vlm_edge.pipeline.exporting.tools import tool_versions
from vlm_edge.pipeline.measuring.measure import measure
from vlm_edge.pipeline.planning.plan import PlanOptions, make_report, to_json
from vlm_edge.pipeline.quantizing.quantize import Progress, QuantizeOptions, quantize_model
from vlm_edge.pipeline.written import written
from vlm_edge.quant.calibrate import Sample, digest

PLAN_REPORT = "reports/plan.json"


@dataclass(frozen=True)
class BuildOptions:
    """What is asked for beside MODEL, OUT and the recipe.

    method, calib, samples, seqlen: as quantize has them.  max_memory_bytes: that a step may hold; None: what is free.
    device, budget: a profile and an amount of memory that the finished bundle has to fit; None: any.
    image_size: `WxH` of the images that the bundle is planned and measured for.  measure: run it at the end.
    force: do every step again.  revision, offline, bars: as hub.fetch has them.
    """

    target: str = "cpu"
    method: str = "awq"
    calib: Path | None = None
    samples: int = SAMPLES
    seqlen: int | None = None
    max_memory_bytes: int | None = None
    device: str | None = None
    budget: str | None = None
    image_size: str | None = None
    measure: bool = True
    force: bool = False
    revision: str = ""
    offline: bool = False
    bars: bool = True


@dataclass(frozen=True)
class Job:
    """One build.

    samples: calibration data, empty where none is needed.  limit_bytes: that a step may hold; enforced: that `quantize` is held to
    it, since it was asked for or since it would hold more if it were let.
    """

    source: Source
    out: Path
    recipe: Recipe
    options: BuildOptions
    effort: Effort
    samples: tuple[Sample, ...]
    limit_bytes: int
    command: str
    enforced: bool = False

    @property
    def model(self) -> str:
        """MODEL for the steps: the folder, or the hub's id, whose commit is in the cache by now."""
        return self.source.origin.get("model") or str(self.source.checkpoint.root)

    @property
    def revision(self) -> str:
        """That commit; empty for a folder."""
        return self.source.origin.get("revision", "")


@dataclass(frozen=True)
class Done:
    """What a step wrote into the bundle, and what it tells."""

    artifacts: tuple[ArtifactRef, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


Say = Callable[[str, float | None], None]
"""Of what is being done, and the seconds that the rest of the step may take, where that is known."""


@dataclass(frozen=True)
class Step:
    """One step.

    inputs: SHA-256 of all that the result depends on.  reads_bundle: it looks at what the steps before it wrote, and writes
    nothing that the manifest lists.
    """

    name: str
    inputs: Callable[[Job], str]
    run: Callable[[Job, Say], Done]
    reads_bundle: bool = False


def steps_of(recipe: Recipe, effort: Effort) -> tuple[Step, ...]:
    """In their order."""
    steps = [Step(EXPORT, _export_inputs, _export)]
    if recipe.packing.llm == "int4":
        steps.append(Step(QUANTIZE, _quantize_inputs, _quantize))
    steps.append(Step(VERIFY, _bundle_inputs, _verify, reads_bundle=True))
    if effort.measured:
        steps.append(Step(MEASURE, _measure_inputs, _measure, reads_bundle=True))
    return tuple(steps)


def apply_recipe(job: Job) -> bool:
    """Give the bundle the recipe's limits and defaults; False where it has them already.

    Raises BadInput for limits that this model cannot have.
    """
    with locked(job.out):
        old = open_bundle(job.out).manifest
        new = as_recipe(old, job.recipe)
        if new == old:
            return False
        write_manifest(job.out, new)
    return True


def as_recipe(manifest: Manifest, recipe: Recipe) -> Manifest:
    """A manifest with a recipe's limits, defaults and markers; raises BadInput as `apply_recipe` does."""
    model = manifest.model
    if discover.family(model.family).free_tiles:
        model = replace(model, geometry=replace(model.geometry, separator_tokens=int(bool(recipe.view_tokens))))
    # a published model's facts are the planner's; the bundle has its own
    plain: Any = to_plain(replace(recipe, model=None))
    return checked(replace(manifest, model=model, limits=recipe.limits, defaults=recipe.defaults, recipe=plain))


def _model_inputs(job: Job) -> Sequence[Any]:
    checkpoint = job.source.checkpoint
    weights = sorted({tensor.path for tensor in checkpoint.tensors.values()})
    stamps = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in weights]
    small = {name: hash_file(checkpoint.root / name) for name in SMALL_FILES if (checkpoint.root / name).is_file()}
    return [dict(job.source.hashes), stamps, small, tool_versions(), job.options.target]


def _export_inputs(job: Job) -> str:
    return fingerprint(_model_inputs(job), to_plain(replace(export_options(job), bars=True)), job.recipe.packing.llm)


def export_options(job: Job) -> ExportOptions:
    """Of the tower and projector; of the decoder too, where it is not quantized."""
    packing, options = job.recipe.packing, job.options
    parts = COMPONENTS if packing.llm == "int4" else ALL_COMPONENTS
    return ExportOptions(components=parts, target=options.target, dtype=packing.vision, bars=options.bars)


def _export(job: Job, say: Say) -> Done:
    options, llm = export_options(job), job.recipe.packing.llm

    def export(components: tuple[str, ...], dtype: str) -> Any:
        made = replace(options, components=components, dtype=dtype, revision=job.revision, offline=True)
        return export_model(job.model, job.out, made, on_step=lambda text: say(text, None))

    done = [export(COMPONENTS, options.dtype)]
    if llm != "int4":
        done.append(export(tuple(part for part in ALL_COMPONENTS if part not in COMPONENTS), llm))
    parity = [to_plain(row) for each in done for row in each.parity]
    details = {"parity": parity, "scheme": done[0].scheme, "why": done[0].why}
    return Done(tuple(artifact for each in done for artifact in each.artifacts), details)


def quantize_options(recipe: Recipe, options: BuildOptions, limit_bytes: int | None) -> QuantizeOptions:
    """As `quantize` is asked.  limit_bytes: None for no limit."""
    packing = recipe.packing
    return QuantizeOptions(
        target=options.target, group_size=packing.group_size, calib=options.calib, samples=options.samples,
        seqlen=options.seqlen, max_memory_bytes=limit_bytes, method=options.method, lm_head=packing.lm_head,
        kv_cache_dtype=packing.kv_cache, bars=options.bars,
    )  # fmt: skip


def _quantize_inputs(job: Job) -> str:
    asked = quantize_options(job.recipe, job.options, None)
    data = [digest(job.samples), job.effort.seqlen] if job.samples else None
    return fingerprint(_model_inputs(job), to_plain(replace(asked, calib=None, bars=True)), data)


def _quantize(job: Job, say: Say) -> Done:
    def on_progress(found: Progress) -> None:
        ratio = "" if found.loss_ratio is None else f": loss {found.loss_ratio:.2f} of RTN's"
        say(f"layer {found.layer}/{found.layers}{ratio}", found.left_s)

    asked = quantize_options(job.recipe, job.options, job.limit_bytes if job.enforced else None)
    asked = replace(asked, revision=job.revision, offline=True)
    done = quantize_model(
        job.model, job.out, asked, on_progress=on_progress, on_note=lambda text: say(text, None),
        command=job.command,
    )  # fmt: skip
    report = done.report
    details = {
        "method": asked.method,
        "held_out": report["held_out"],
        "onnx": report["onnx"],
        "planned_bytes": report["memory"]["planned_bytes"],
        "resumed_layers": report["resumed_layers"],
    }
    return Done(done.artifacts, details)


def _bundle_inputs(job: Job) -> str:
    bundle = open_bundle(job.out)
    return fingerprint(bundle.manifest.self_sha256, touched(bundle), tool_versions())


def _verify(job: Job, say: Say) -> Done:
    found = verify_bundle(job.out, on_step=lambda text: say(text, None))
    write_report(found)
    if found.failures:
        first = found.failures[0]
        raise CheckFailed(
            f"the built bundle does not pass: the check of {first.name} says no{f' ({first.note})' if first.note else ''}",
            remedy="build it again with --force; vlm-edge verify shows every check",
        )
    unchecked = [check.name for check in found.checks if check.ok is None]
    return Done(details={"ok": True, "checks": len(found.checks), "not_checked": unchecked})


def _measure_inputs(job: Job) -> str:
    return fingerprint(_bundle_inputs(job), job.options.image_size)


def _measure(job: Job, say: Say) -> Done:
    """Run the bundle as it was planned, and write the plan with what was measured beside it."""
    limits = job.recipe.limits
    asked = PlanOptions(
        target=job.options.target, budget=f"{job.limit_bytes}B", image_size=job.options.image_size,
        images=limits.max_images, batch_size=limits.batch_size,
    )  # fmt: skip
    report = make_report(str(job.out), asked)
    say("run the bundle as planned", None)
    phases = {name: to_plain(found) for name, found in measure(str(job.out), report).items()}
    peak = {f"{kind}_peak_bytes": max(p[f"{kind}_bytes"] for p in phases.values()) for kind in ("planned", "measured")}
    plain = {**to_json(report, job.command), "measured": phases}
    with written(job.out / PLAN_REPORT, remedy="free space there") as stream:
        stream.write(json.dumps(plain, indent=1).encode() + b"\n")
    return Done(details={"run": {"phases": phases, **peak}})


def existing(out: Path) -> Bundle | None:
    """The bundle that is there; None for a folder without one.  Raises DamagedBundle."""
    return open_bundle(out) if (out / MANIFEST).is_file() else None

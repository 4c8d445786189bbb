"""vlm-edge build MODEL OUT --recipe FILE"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm_edge.cli import render
from vlm_edge.cli.options import (
    AsJson,
    Checkpoint,
    Method,
    Offline,
    Out,
    Revision,
    Samples,
    Seqlen,
    profile_names,
    recipe_names,
    typed,
)
from vlm_edge.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from vlm_edge.pipeline.building.build import BuildProgress, Built

COLUMNS = ("step", "", "planned peak", "measured peak", "with mapped files", "time")


def _targets() -> list[str]:
    return ["cpu", "cuda"]


RecipeName = Annotated[
    str,
    typer.Option(
        "--recipe",
        help="YAML file, or the name of a recipe that ships.",
        autocompletion=recipe_names,
        show_default=False,
    ),
]
Target = Annotated[str, typer.Option(help="What the bundle is for: cpu or cuda.", autocompletion=_targets)]
Calib = Annotated[
    Path | None,
    typer.Option(help="Calibration data, as quantize takes it; default: the set that ships.", show_default=False),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(help="Memory that a step may hold, such as 8GiB; default: what is free.", show_default=False),
]
DeviceProfile = Annotated[
    str | None,
    typer.Option(
        help="Device profile that the bundle has to fit, such as rtx-4060.",
        autocompletion=profile_names,
        show_default=False,
    ),
]
Budget = Annotated[
    str | None, typer.Option(help="Memory that the bundle has to fit, such as 8GiB.", show_default=False)
]
ImageSize = Annotated[
    str | None,
    typer.Option(help="WxH of the images that it is planned and measured for; default 1920x1080.", show_default=False),
]
NoMeasure = Annotated[bool, typer.Option("--no-measure", help="Do not run the finished bundle.")]
Force = Annotated[bool, typer.Option("--force", help="Do every step again.")]


def build(
    model: Checkpoint,
    out: Out,
    recipe: RecipeName,
    target: Target = "cpu",
    method: Method = "awq",
    calib: Calib = None,
    samples: Samples = 32,
    seqlen: Seqlen = None,
    max_memory: MaxMemory = None,
    device: DeviceProfile = None,
    budget: Budget = None,
    image_size: ImageSize = None,
    no_measure: NoMeasure = False,
    force: Force = False,
    revision: Revision = "",
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Plan, export, quantize, verify and measure a model as a recipe says, in one run that can be stopped.

    Every step is planned first, and refused with exit code 1 before a weight is read where memory is short. The same command
    again goes on where a run was stopped, and leaves alone what is finished; --force does it all again. The KV cache's scales,
    where the recipe has packing.kv_cache, are found while quantizing.

    Exit code 0: built, and verify says no to nothing; 1: it does not fit, or a check says no; 2: it could not be done.

    Example: vlm-edge build llava-1.5-7b-hf/ out/ --recipe llava-1.5-7b --max-memory 12GiB
    """
    from vlm_edge.core.recipe import find_recipe, load_recipe
    from vlm_edge.pipeline.building.build import BuildOptions, build_model

    found = load_recipe(find_recipe(recipe))
    command = typed()
    options = BuildOptions(
        target=target, method=method, calib=calib, samples=samples, seqlen=seqlen,
        max_memory_bytes=parse_bytes(max_memory) if max_memory else None, device=device, budget=budget,
        image_size=image_size, measure=not no_measure, force=force, revision=revision, offline=offline,
        bars=not render.VERBOSITY.quiet,
    )  # fmt: skip
    with render.layers("build") as show:
        done = build_model(model, out, found, options, on_progress=_display(show), command=command)
    if as_json:
        render.emit_json(_to_json(done, command))
    else:
        _show(done)


def _display(show: Callable[[int, int, str], None]) -> Callable[[BuildProgress], None]:
    """One line for all steps; where it cannot be written over, one for each thing that is begun."""
    said = ""

    def on_progress(found: BuildProgress) -> None:
        nonlocal said
        if found.text:
            said = found.text
        elif not render.is_live():
            return
        show(found.number - 1, found.steps, _line(found, said))

    return on_progress


def _line(found: BuildProgress, said: str) -> str:
    where = f"{found.step} {found.number}/{found.steps}" if found.steps > 1 else found.step
    left = "" if found.left_s is None else f"{render.minutes(found.left_s)} left, "
    planned = "" if found.planned_bytes is None else f" of {format_bytes(found.planned_bytes)} planned"
    return (
        f"{where}: {said}; {left}{format_bytes(found.held_bytes)} held, peak {format_bytes(found.peak_bytes)}{planned}"
    )


def _to_json(done: Built, command: str) -> dict[str, Any]:
    from vlm_edge.core.load import to_plain

    manifest, plan, options = done.bundle.manifest, done.report.plan, done.options
    return {
        "bundle": str(done.bundle.root),
        "name": manifest.name,
        "recipe": done.recipe.name,
        "target": options.target,
        "method": options.method,
        "max_memory_bytes": done.limit_bytes,
        "plan": {
            "device": done.report.device.name if done.report.device else None,
            "fits": plan.fits,
            "budget_bytes": plan.budget_bytes,
            "peak_bytes": plan.peak_bytes,
            "peak_phase": plan.peak_phase,
        },
        "steps": [
            {
                "name": step.name,
                "skipped": step.skipped,
                "planned_peak_bytes": step.record.planned_peak_bytes,
                "measured_peak_bytes": step.record.measured_peak_bytes,
                "kept_peak_bytes": step.record.kept_peak_bytes,
                "seconds": step.record.seconds,
                **step.record.details,
            }
            for step in done.steps
        ],
        "artifacts": [to_plain(artifact) for artifact in manifest.artifacts],
        "seconds": done.seconds,
        "command": command,
    }


def _show(done: Built) -> None:
    rows = [
        (
            step.name,
            "finished before" if step.skipped else "done",
            "-" if step.record.planned_peak_bytes is None else format_bytes(step.record.planned_peak_bytes),
            format_bytes(step.record.kept_peak_bytes),
            format_bytes(step.record.measured_peak_bytes),
            f"{step.record.seconds:.1f} s",
        )
        for step in done.steps
    ]
    manifest = done.bundle.manifest
    render.table(f"{manifest.name} in {done.bundle.root}, by the recipe {done.recipe.name}", COLUMNS, rows)
    size = sum(artifact.bytes for artifact in manifest.artifacts)
    told = f"{len(manifest.artifacts)} files, {format_bytes(size)}"
    run = next((step.record.details.get("run") for step in done.steps if step.name == "measure"), None)
    if run:
        planned, found = (format_bytes(run[f"{kind}_peak_bytes"]) for kind in ("planned", "measured"))
        told += f"; a run holds {planned} as planned, {found} as measured"
    render.emit(told, end="\n")

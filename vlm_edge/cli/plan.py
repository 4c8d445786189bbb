"""vlm-edge plan MODEL|BUNDLE"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlm_edge.cli import render
from vlm_edge.cli.options import (
    AsJson,
    Budget,
    Keep,
    MaxTiles,
    Reduce,
    Tiling,
    profile_names,
    recipe_names,
    typed,
)
from vlm_edge.units import format_bytes, format_pair

if TYPE_CHECKING:
    from vlm_edge.memory.phases import Plan
    from vlm_edge.pipeline.measuring.measure import Measured
    from vlm_edge.pipeline.planning.plan import Report


def _unknowns() -> list[str]:
    return ["tiles", "pixels", "context", "batch"]


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL|BUNDLE",
        help="Recipe name, config.json, checkpoint folder or bundle.",
        autocompletion=recipe_names,
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="Device profile, such as rtx-4090, or a file.", autocompletion=profile_names, show_default=False),
]
Margin = Annotated[str | None, typer.Option(help="Left free; default 512MiB on a GPU, 0 on a CPU.", show_default=False)]
ImageSize = Annotated[str | None, typer.Option(help="WxH in pixels; default 1920x1080.", show_default=False)]
Images = Annotated[int, typer.Option(help="Images in a prompt.")]
MaxModelLen = Annotated[
    int | None, typer.Option(help="Positions of the KV cache; default: the recipe's, or 4096.", show_default=False)
]
BatchSize = Annotated[int, typer.Option(help="Sequences at once.")]
KvCacheDtype = Annotated[str, typer.Option(help="auto, fp32, fp16, int8 or int4.")]
Weights = Annotated[str | None, typer.Option(help="awq, int8, fp16 or fp32; default awq.", show_default=False)]
GroupSize = Annotated[int | None, typer.Option(help="Weights that share a scale; default 128.", show_default=False)]
LmHead = Annotated[
    str | None, typer.Option(help="fp16, int8, int4 or fp32; default: the recipe's, or fp16.", show_default=False)
]
VisionDtype = Annotated[
    str | None, typer.Option(help="fp16, fp32 or int8; default fp16, fp32 on a CPU.", show_default=False)
]
VisionAttention = Annotated[str, typer.Option(help="unfused, as exported graphs have it, or fused.")]
Target = Annotated[str | None, typer.Option(help="cpu or cuda; default: the device's.", show_default=False)]
RecipeFile = Annotated[
    str | None, typer.Option(help="File or shipped recipe that says how MODEL is packed.", show_default=False)
]
Solve = Annotated[
    str | None,
    typer.Option(help="The most of tiles, pixels, context or batch.", autocompletion=_unknowns, show_default=False),
]
Measure = Annotated[bool, typer.Option("--measure", help="Run it on this CPU and compare; for bundles.")]
Html = Annotated[Path | None, typer.Option(help="Write a self-contained page.", show_default=False)]
Png = Annotated[Path | None, typer.Option(help="Draw the phases; needs the report extra.", show_default=False)]


def plan(
    model: Model,
    device: Device = None,
    budget: Budget = None,
    margin: Margin = None,
    image_size: ImageSize = None,
    images: Images = 1,
    max_model_len: MaxModelLen = None,
    batch_size: BatchSize = 1,
    kv_cache_dtype: KvCacheDtype = "auto",
    weights: Weights = None,
    group_size: GroupSize = None,
    lm_head: LmHead = None,
    vision_dtype: VisionDtype = None,
    vision_attention: VisionAttention = "unfused",
    target: Target = None,
    tiling: Tiling = None,
    max_tiles: MaxTiles = None,
    reduce: Reduce = None,
    keep: Keep = None,
    recipe: RecipeFile = None,
    solve: Solve = None,
    measure: Measure = False,
    html: Html = None,
    png: Png = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a model fits a device, where every byte goes in every phase, and what would fit if it does not.

    Nothing is loaded or downloaded. Exit code 0: it fits; 1: it does not, with advice.

    Examples: vlm-edge plan llava-1.5-7b --device rtx-4090; what fits: vlm-edge plan qwen2.5-vl-7b --budget 12GiB --solve
    pixels; a text model: vlm-edge plan config.json --device l4; a page for others: --html plan.html
    """
    for path, suffixes in ((html, (".html", ".htm")), (png, (".png",))):
        if path is not None:
            from vlm_edge.pipeline.written import check_output

            check_output(path, suffixes)
    from vlm_edge.pipeline.planning.plan import PlanOptions, make_report, to_json

    options = PlanOptions(
        device=device, budget=budget, margin=margin, image_size=image_size, images=images, max_model_len=max_model_len,
        batch_size=batch_size, kv_cache_dtype=kv_cache_dtype, weights=weights, group_size=group_size, lm_head=lm_head,
        vision_dtype=vision_dtype, vision_attention=vision_attention, target=target, tiling=tiling, max_tiles=max_tiles,
        reduce=reduce, keep=keep, recipe=recipe, solve=solve,
    )  # fmt: skip
    report = make_report(model, options)
    plain = to_json(report, typed())
    measured: Mapping[str, Measured] = {}
    if measure:
        from vlm_edge.pipeline.measuring.measure import measure as measure_run

        measured = measure_run(model, report)
        plain["measured"] = {
            phase: {"planned_bytes": m.planned_bytes, "measured_bytes": m.measured_bytes, "error": m.error}
            for phase, m in measured.items()
        }
    if html is not None:
        from vlm_edge.pipeline.planning.page import write_page

        write_page(plain, html)
    if png is not None:
        from vlm_edge.pipeline.planning.chart import draw_chart

        draw_chart(plain, png)
    if as_json:
        render.emit_json(plain)
    else:
        _show(report)
        _show_measured(measured)
    if not report.plan.fits:
        raise typer.Exit(1)


def _show(report: Report) -> None:
    planned, subject = report.plan, report.model.subject
    where = report.device.title if report.device else report.request.target
    render.table(f"{subject.name} on {where}", ("part", "memory", "dtype", *planned.phases, "how"), _rows(planned))
    verdict = "fits" if planned.fits else "does not fit"
    peak, budget = format_pair(planned.peak_bytes, planned.budget_bytes)
    render.emit(
        f"\n{verdict}: {planned.peak_phase} needs {peak} of {budget}; {planned.visual_tokens} visual tokens", end="\n"
    )
    if planned.host_peak_bytes:
        render.emit(f"the host needs {format_bytes(planned.host_peak_bytes)} beside it", end="\n")
    if report.latency is not None:
        times = report.latency
        render.emit(
            f"forecast: encode {_ms(times.encode_ms)}, prefill of {times.prompt_tokens} tokens {_ms(times.prefill_ms)}, "
            f"first token after {_ms(times.ttft_ms)}, then {times.ms_per_token:.1f} ms a token",
            end="\n",
        )
    steps = ", ".join(f"{name} {format_bytes(step.peak_bytes)}" for name, step in report.steps.items())
    render.emit(f"making it, on a host: {steps}", end="\n")
    if report.solution is not None:
        found = report.solution
        unit = {"pixels": " px along the longer edge"}.get(found.unknown, "")
        beyond = f"; the next step needs {format_bytes(found.next_peak_bytes)}" if found.next_peak_bytes else ""
        render.emit(f"most {found.unknown}: {found.answer}{unit} (limited by {found.limited_by}{beyond})", end="\n")
    if report.advice:
        rows = [(a.change, format_bytes(a.peak_bytes), "yes" if a.fits else "no") for a in report.advice]
        render.table("\nWhat would help", ("change", "peak", "fits"), rows)
    for note in report.notes:
        render.note(note)


def _show_measured(measured: Mapping[str, Measured]) -> None:
    if measured:
        rows = [
            (phase, format_bytes(m.planned_bytes), format_bytes(m.measured_bytes), f"{100 * m.error:+.1f}%")
            for phase, m in measured.items()
        ]
        render.table("\nMeasured here, the margin left out", ("phase", "planned", "measured", "error"), rows)


def _rows(planned: Plan) -> list[tuple[str, ...]]:
    """One for each item, with a mark in the phases in which it is alive, and the sums."""
    rows = [
        (item.name, format_bytes(item.bytes), item.dtype,
         *("host" if phase in item.phases and item.place == "host" else "x" if phase in item.phases else ""
           for phase in planned.phases), f"{item.formula} ({item.basis})")
        for item in planned.items
    ]  # fmt: skip
    return [*rows, ("all", "", "", *(format_bytes(size) for size in planned.phases.values()), "")]


def _ms(value: float) -> str:
    return f"{value / 1000:.1f} s" if value >= 10_000 else f"{value:.0f} ms"

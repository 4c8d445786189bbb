"""What a command line asks -> a plan with everything that is told about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vlm_edge.core.device import DeviceProfile, load_profile
from vlm_edge.errors import BadInput
from vlm_edge.memory.advise import Advice, advise
from vlm_edge.memory.latency import Latency, forecast
from vlm_edge.memory.phases import Plan
from vlm_edge.memory.plan import CUDA_RUNTIME_BYTES, RUNTIME_BYTES, plan_request
from vlm_edge.memory.request import MOST_EDGE_PX, TARGETS, Request, visual_of
from vlm_edge.memory.solve import Solution, solve
from vlm_edge.memory.steps import step_plans
from vlm_edge.pipeline.answering.options import READ_BY, AskOptions
from vlm_edge.pipeline.planning.inputs import Planned, find_model
from vlm_edge.units import MIB, parse_bytes

DEFAULT_CONTEXT = 4096
ROOM_FOR_TEXT = 256
CONTEXT_STEP = 1024
CUDA_MARGIN_BYTES = 512 * MIB
_SIZE = re.compile(r"(\d{1,9})\s*[xX]\s*(\d{1,9})")


@dataclass(frozen=True)
class PlanOptions:
    """The options of `vlm-edge plan`; None means: as the model, the device or the target has it."""

    device: str | None = None
    budget: str | None = None
    margin: str | None = None
    image_size: str | None = None
    images: int = 1
    max_model_len: int | None = None
    batch_size: int = 1
    kv_cache_dtype: str = "auto"
    weights: str | None = None
    group_size: int | None = None
    lm_head: str | None = None
    vision_dtype: str | None = None
    vision_attention: str = "unfused"
    target: str | None = None
    tiling: str | None = None
    max_tiles: int | None = None
    reduce: str | None = None
    keep: float | None = None
    recipe: str | None = None
    solve: str | None = None


@dataclass(frozen=True)
class Report:
    """A plan and what was planned. notes: what was assumed, a line each."""

    model: Planned
    device: DeviceProfile | None
    request: Request
    plan: Plan
    steps: Mapping[str, Plan]
    latency: Latency | None
    advice: tuple[Advice, ...]
    solution: Solution | None
    notes: tuple[str, ...]

    @property
    def limits(self) -> dict[str, int]:
        """What the plan holds for."""
        request, visual = self.request, visual_of(self.model.subject, self.request)
        width, height = request.image_px
        return {
            "max_tiles": max(visual.at_once - 1, 0),
            "max_model_len": request.context,
            "max_pixels": width * height if request.images else 0,
            "batch_size": request.batch,
        }


def make_report(name: str, options: PlanOptions) -> Report:
    """Plan a bundle, a checkpoint folder, a config.json or a recipe by name.

    Raises BadInput for whatever cannot be planned, DoesNotFit where --solve finds that not even the least fits.
    """
    # bad values are told before files are read
    device = _checked(options)
    model = find_model(name, recipe=options.recipe, target=options.target or (device.target if device else None))
    return _report(model, options, device)


def report_on(model: Planned, options: PlanOptions) -> Report:
    """The plan of a model that was found already; raises as `make_report` does."""
    return _report(model, options, _checked(options))


def _checked(options: PlanOptions) -> DeviceProfile | None:
    """The device's profile; raises BadInput for a value that no model could be planned with."""
    AskOptions(tiling=options.tiling, max_tiles=options.max_tiles, reduce=options.reduce, keep=options.keep)
    for amount in (options.margin, options.budget):
        if amount is not None:
            parse_bytes(amount)
    if options.device is None:
        return None
    device = load_profile(options.device)
    shared = device.unified_memory and options.target == "cpu"
    if options.target in TARGETS and options.target != device.target and not shared:
        raise BadInput(
            f"{device.name} runs what is built for {device.target}, and its memory is no budget for {options.target}",
            remedy=f"leave --target out, or name a device for {options.target} or a --budget instead",
        )
    return device


def _report(model: Planned, options: PlanOptions, device: DeviceProfile | None) -> Report:
    margin = None if options.margin is None else parse_bytes(options.margin)
    budget = None if options.budget is None else parse_bytes(options.budget)
    target = options.target or (device.target if device else None) or model.target
    notes = list(model.notes)
    if target is None or budget is None:
        target, budget = _machine(target, budget, device, notes)
    request = _request(model, options, target, device, margin, notes)
    solution = None
    if options.solve is not None:
        solution = solve(model.subject, request, options.solve, budget_bytes=budget)
        request = solution.request
    plan = plan_request(model.subject, request, budget_bytes=budget)
    return Report(
        model=model,
        device=device,
        request=request,
        plan=plan,
        steps=step_plans(model.subject, request, budget_bytes=budget),
        # a profile's rates are those of its target; the CPU of a Jetson shares its memory and nothing else
        latency=forecast(model.subject, request, plan, device) if device and device.target == target else None,
        advice=advise(model.subject, request, budget_bytes=budget),
        solution=solution,
        notes=tuple(notes),
    )


def _machine(target: str | None, budget: int | None, device: DeviceProfile | None, notes: list[str]) -> tuple[str, int]:
    """Target and budget where they were not both named: the profile's, else what this machine has free now."""
    if device is not None:
        return target or device.target, budget if budget is not None else device.usable_bytes.value
    if budget is not None:
        return target or "cuda", budget
    from vlm_edge.core import host
    from vlm_edge.pipeline.machine import query_gpus

    gpus = query_gpus()[0] if target != "cpu" else ()
    if gpus and gpus[0].free_bytes is not None:
        notes.append(f"the budget is what {gpus[0].name} has free now")
        return "cuda", gpus[0].free_bytes
    if target == "cuda":
        raise BadInput("there is no NVIDIA GPU here to take a budget from", remedy="name --device or --budget")
    free = host.usable_bytes()
    if free is None:
        raise BadInput("this system does not say how much memory is free", remedy="name --device or --budget")
    notes.append("the budget is this machine's free memory, less a reserve")
    return "cpu", free


def _request(
    model: Planned,
    options: PlanOptions,
    target: str,
    device: DeviceProfile | None,
    margin: int | None,
    notes: list[str],
) -> Request:
    cpu = target == "cpu"
    runtime = RUNTIME_BYTES if cpu else CUDA_RUNTIME_BYTES
    if device is not None and device.target == target and device.runtime_bytes is not None:
        runtime = device.runtime_bytes.value
    if options.vision_attention not in ("fused", "unfused"):
        raise BadInput(f"--vision-attention has no value {options.vision_attention!r}", remedy="use fused or unfused")
    given = options.kv_cache_dtype
    request = Request(
        target=target,
        unified=cpu or (device is not None and device.unified_memory),
        weights=model.weights if options.weights is None else options.weights,
        group_size=model.group_size if options.group_size is None else options.group_size,
        lm_head=model.lm_head if options.lm_head is None else options.lm_head,
        vision_dtype=("fp32" if cpu else "fp16") if options.vision_dtype is None else options.vision_dtype,
        kv_cache=given if given != "auto" else model.kv_cache or ("fp32" if cpu else "fp16"),
        images=options.images if model.subject.vision is not None else 0,
        image_px=_size(options.image_size, notes) if model.subject.vision is not None else (1, 1),
        tiles=_tiles(model, options),
        keep=_keep(options, notes),
        batch=options.batch_size,
        fused_vision=options.vision_attention == "fused",
        runtime_bytes=runtime,
        margin_bytes=(0 if cpu else CUDA_MARGIN_BYTES) if margin is None else margin,
        context=options.max_model_len if options.max_model_len is not None else DEFAULT_CONTEXT,
    )
    if not model.subject.free_tiles:
        _check_tiles(model, options, request)
    if options.max_model_len is not None:
        return request
    return replace(request, context=_context(model, request, notes))


def _size(text: str | None, notes: list[str]) -> tuple[int, int]:
    if text is None:
        width, height = Request().image_px
        notes.append(f"images are taken to be {width} x {height} px; --image-size says otherwise")
        return width, height
    match = _SIZE.fullmatch(text.strip())
    sides = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(1 <= side <= MOST_EDGE_PX for side in sides):
        raise BadInput(f"--image-size {text!r} is no size", remedy="write it like 1920x1080, width first, in pixels")
    return sides


def _tiles(model: Planned, options: PlanOptions) -> int | None:
    """Tiles beside the global view; None where the family cuts images by rules of its own, which may come to fewer."""
    if options.tiling == "none" or options.max_tiles == 0:
        return 0
    if options.tiling == "auto" and model.subject.chosen_tiles and model.subject.geometry is not None:
        return options.max_tiles or model.most_tiles or model.subject.geometry.most_choice
    if not model.subject.free_tiles:
        return None if options.tiling is not None or options.max_tiles is not None else model.tiles
    if options.max_tiles is None and options.tiling is not None and model.most_tiles is not None:
        return model.most_tiles
    return options.max_tiles if options.max_tiles is not None else model.tiles


def _check_tiles(model: Planned, options: PlanOptions, request: Request) -> None:
    """Refuse, as a run does, an image that the family's rules cut into more tiles than are allowed."""
    most, geometry = model.most_tiles if options.max_tiles is None else options.max_tiles, model.subject.geometry
    if request.tiles is not None or most is None or geometry is None or not request.images:
        return
    width, height = request.image_px
    tiles = geometry.layout(request.image_px).views - 1
    if tiles > most:
        raise BadInput(
            f"an image of {width}x{height} px is cut into {tiles} tiles; {most} are allowed",
            remedy=f"use --max-tiles {tiles}, or --tiling none",
        )


def _keep(options: PlanOptions, notes: list[str]) -> float:
    if options.keep is not None and options.reduce not in READ_BY["keep"]:
        raise BadInput("--keep is read by some reductions only", remedy=f"add --reduce {READ_BY['keep'][-1]}")
    if options.reduce == "threshold":
        notes.append("how much merging by threshold saves depends on the image: the plan counts every token")
    return options.keep if options.keep is not None else 0.5 if options.reduce in READ_BY["keep"] else 1.0


def _context(model: Planned, request: Request, notes: list[str]) -> int:
    """The recipe's or bundle's context, or 4096; longer where the visual tokens need more and the model has it."""
    most = model.subject.text.max_positions
    context = min(most, model.max_model_len or DEFAULT_CONTEXT)
    needed = visual_of(model.subject, request).prompt + ROOM_FOR_TEXT
    if needed > context and model.subject.text.max_positions > context:
        context = min(most, -(-needed // CONTEXT_STEP) * CONTEXT_STEP)
        notes.append(f"the context is {context}, so that the visual tokens have room")
    return context


def to_json(report: Report, command: str) -> dict[str, Any]:
    """The plan as `--json` prints it."""
    plan, latency, found = report.plan, report.latency, report.solution
    return {
        "model": report.model.subject.name,
        "source": report.model.source,
        "device": report.device.name if report.device else None,
        "target": report.request.target,
        "fits": plan.fits,
        "budget_bytes": plan.budget_bytes,
        "peak_bytes": plan.peak_bytes,
        "peak_phase": plan.peak_phase,
        "phases": dict(plan.phases),
        "host_peak_bytes": plan.host_peak_bytes,
        "items": _items(plan),
        "visual_tokens": plan.visual_tokens,
        "latency": None if latency is None else {
            "encode_ms": latency.encode_ms, "prefill_ms": latency.prefill_ms, "ttft_ms": latency.ttft_ms,
            "ms_per_token": latency.ms_per_token, "prompt_tokens": latency.prompt_tokens,
        },
        "advice": [{"change": a.change, "peak_bytes": a.peak_bytes, "fits": a.fits} for a in report.advice],
        "limits": report.limits,
        "steps": {
            name: {"peak_bytes": step.peak_bytes, "peak_phase": step.peak_phase, "phases": dict(step.phases),
                   "items": _items(step)}
            for name, step in report.steps.items()
        },
        "solve": None if found is None else {
            "unknown": found.unknown, "answer": found.answer, "limited_by": found.limited_by,
            "peak_bytes": found.peak_bytes, "next_peak_bytes": found.next_peak_bytes,
        },
        "notes": list(report.notes),
        "command": command,
    }  # fmt: skip


def _items(plan: Plan) -> list[dict[str, Any]]:
    return [
        {"name": i.name, "bytes": i.bytes, "dtype": i.dtype, "formula": i.formula, "phases": list(i.phases),
         "basis": i.basis, "memory": i.place}
        for i in plan.items
    ]  # fmt: skip

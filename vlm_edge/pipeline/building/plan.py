"""What each step of `build` will hold, from sizes alone: before a weight is read, and without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlm_edge.backends.onnx.layered import TEMPLATE_LAYERS
from vlm_edge.core.recipe import Recipe
from vlm_edge.core.specs import TextSpec
from vlm_edge.errors import DoesNotFit
from vlm_edge.memory.cpu_graph import cpu_graph
from vlm_edge.memory.quantize_plan import COMPARED_BYTES, MemoryPlan, plan, sizes_of
from vlm_edge.memory.request import Request, Subject
from vlm_edge.memory.steps import TORCH_RUNTIME_BYTES
from vlm_edge.memory.weights import decoder_bytes
from vlm_edge.pipeline.planning.inputs import Planned
from vlm_edge.pipeline.planning.plan import PlanOptions, Report, report_on
from vlm_edge.units import MIB, format_bytes, format_pair

PLAN, EXPORT, QUANTIZE, VERIFY, MEASURE = "plan", "export", "quantize", "verify", "measure"
BUILDER_COPIES = 3
"""Of a float decoder, while onnxruntime-genai's builder makes a graph of it: torch's, the graph's and the file's. Not measured."""
_EVERYTHING = "100000GiB"
"""A budget for plans that are asked for their peak alone."""


@dataclass(frozen=True)
class Effort:
    """What is asked for beside the recipe, as far as memory is concerned.

    seqlen: tokens of the longest calibration sequence.  image_size: `WxH` of the images that the bundle is planned for.
    measured: whether the finished bundle is to be run.
    """

    target: str
    method: str
    samples: int
    seqlen: int
    image_size: str | None = None
    measured: bool = True


@dataclass(frozen=True)
class StepPlan:
    """One step's planned peak.

    peaks_bytes: what it holds, ascending: at the least, and where there is room for more.  smaller: what would make it smaller, in
    words.
    """

    name: str
    peaks_bytes: tuple[int, ...]
    smaller: str = ""

    @property
    def least_bytes(self) -> int:
        """What it can be made to do with."""
        return self.peaks_bytes[0]

    @property
    def peak_bytes(self) -> int:
        """What it holds where nothing limits it."""
        return self.peaks_bytes[-1]

    def within(self, limit_bytes: int) -> int:
        """What it holds under a limit that allows for the least."""
        return max((peak for peak in self.peaks_bytes if peak <= limit_bytes), default=self.least_bytes)


def run_report(
    model: Planned, recipe: Recipe, effort: Effort, *, device: str | None = None, budget: str | None = None
) -> Report:
    """The plan of the finished bundle's runs, as a recipe packs them; raises BadInput for what cannot be planned."""
    limits = recipe.limits
    options = PlanOptions(
        device=device, budget=budget, image_size=effort.image_size, images=limits.max_images,
        batch_size=limits.batch_size, vision_dtype=recipe.packing.vision, target=effort.target,
    )  # fmt: skip
    return report_on(model, options)


def step_plans(model: Planned, recipe: Recipe, effort: Effort) -> tuple[StepPlan, ...]:
    """In the order in which they run; `plan` itself, which reads configuration alone, is none of them."""
    run = run_report(model, recipe, effort, budget=_EVERYTHING)
    plans = [_export(run.steps[EXPORT].peak_bytes, model.subject, recipe.packing.llm)]
    if recipe.packing.llm == "int4":
        plans.append(_quantize(model.subject, recipe, effort))
    # verify opens what a run opens, here in a process that may hold torch; a measured run is a process beside this one
    opened = TORCH_RUNTIME_BYTES + run.plan.peak_bytes
    plans.append(StepPlan(VERIFY, (opened,)))
    if effort.measured:
        plans.append(StepPlan(MEASURE, (opened,), "--no-measure leaves it out"))
    return tuple(plans)


def _export(tower_bytes: int, subject: Subject, llm: str) -> StepPlan:
    if llm == "int4":
        return StepPlan(EXPORT, (tower_bytes,))
    decoder = BUILDER_COPIES * decoder_bytes(subject.text, weights="fp32", group_size=1)
    peak = max(tower_bytes, TORCH_RUNTIME_BYTES + decoder)
    return StepPlan(EXPORT, (peak,), "packing.llm: int4 needs less")


def _quantize(subject: Subject, recipe: Recipe, effort: Effort) -> StepPlan:
    made = quantize_plan(subject, recipe, effort, effort.method)
    plain = max(quantize_plan(subject, recipe, effort, "rtn").spilled, _drawing(subject.text))
    smaller = [f"--method rtn needs {format_bytes(plain)}"] if plain < made.spilled else []
    smaller += ["a smaller --seqlen less"] if effort.method == "awq" else []
    drawn, loaded = _drawing(subject.text), _comparing(subject.text, recipe)
    peaks = {max(made.spilled, drawn), max(made.resident, drawn), max(made.resident, drawn, loaded)}
    return StepPlan(QUANTIZE, tuple(sorted(peaks)), ", ".join(smaller))


def _drawing(text: TextSpec) -> int:
    """While the builder, a process beside this one, draws the graph from two layers' attention. A bound."""
    attention = 2 * text.hidden * text.head_dim * (text.heads + text.kv_heads)
    return 2 * TORCH_RUNTIME_BYTES + BUILDER_COPIES * TEMPLATE_LAYERS * attention * 4


def _comparing(text: TextSpec, recipe: Recipe) -> int:
    """While the finished decoder is loaded as a run loads it; without the room it is compared from the file. A bound."""
    packing = recipe.packing
    graph = cpu_graph(text, Request(weights="awq", group_size=packing.group_size, lm_head=packing.lm_head))
    return TORCH_RUNTIME_BYTES + graph.loaded_bytes + COMPARED_BYTES


def quantize_plan(subject: Subject, recipe: Recipe, effort: Effort, method: str) -> MemoryPlan:
    """As `quantize` plans it once it has the layers; here from the decoder's sizes, with every sequence as long as allowed."""
    samples = effort.samples if method == "awq" or recipe.packing.kv_cache != "auto" else 0
    sizes = sizes_of(subject, group_size=recipe.packing.group_size, samples=samples, longest=effort.seqlen)
    return plan(sizes, TORCH_RUNTIME_BYTES, method=method)


def check_steps(plans: Sequence[StepPlan], limit_bytes: int) -> None:
    """Raise DoesNotFit for the first step that cannot be done within the limit; its remedy is enough for all of them."""
    enough = max((step.least_bytes for step in plans), default=0)
    for step in plans:
        if step.least_bytes > limit_bytes:
            hint = f"; {step.smaller}" if step.smaller else ""
            needed, allowed = format_pair(step.least_bytes, limit_bytes)
            raise DoesNotFit(
                f"{step.name} needs {needed} of this machine's memory; {allowed} are allowed",
                remedy=f"give it --max-memory {-(-enough // MIB)}MiB, on a machine that has as much{hint}",
            )

"""Plans of our own steps before a run: exporting the vision part, calibrating, building an engine. All on one machine.

These are bounds from how each step works; none of these steps was measured as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vlm_edge.core.calibration import SAMPLES, SEQLEN
from vlm_edge.core.specs import ProjectorSpec, VisionSpec
from vlm_edge.memory import quantize_plan, vision, weights
from vlm_edge.memory.phases import Plan, PlanItem, sum_up
from vlm_edge.memory.request import Request, Subject, Visual, visual_of

TORCH_RUNTIME_BYTES = 640 << 20
"""A process with torch, transformers and ONNX imported holds 376 MiB before any weight (2026-11); the rest is for the tracer."""
TRACE_VIEWS = 2
"""Views of the inputs on which `export` traces: one would be taken for a constant."""
ENGINE_WORKSPACE_BYTES = 1 << 30
"""What an engine builder is allowed for trying out kernels."""


_OF_LAYER = {
    "observe": "one layer and its rounded copy, and what its linear layers read",
    "search": "one layer, copies of its largest linear layer, and the tokens that scales are judged on",
    "graph": "one layer multiplied out, beside what unpacks its largest linear layer",
}


def step_plans(subject: Subject, request: Request, *, budget_bytes: int) -> Mapping[str, Plan]:
    """A plan for each step that this model needs: `calibrate` for its decoder, `export` and `build` for its tower."""
    visual = visual_of(subject, request)
    plans = {"calibrate": _calibrate(subject, request, budget_bytes)}
    if subject.vision is not None and subject.projector is not None and visual.views:
        tower = _Tower(subject.vision, subject.projector, visual)
        plans["export"] = _export(tower, budget_bytes)
        plans["build"] = _build(tower, request, budget_bytes)
    return plans


@dataclass(frozen=True)
class _Tower:
    """What export and engine build work on."""

    vision: VisionSpec
    projector: ProjectorSpec
    visual: Visual

    def weights(self, dtype: str) -> int:
        return weights.vision_bytes(self.vision, dtype=dtype) + weights.projector_bytes(self.projector, dtype=dtype)

    def running(self, views: int, *, patches: int | None = None, elem_bytes: int = 4, fused: bool = False) -> int:
        return vision.vision_activation_bytes(
            self.vision, views=views, patches=patches, elem_bytes=elem_bytes, fused=fused
        )


def _export(tower: _Tower, budget_bytes: int) -> Plan:
    """The tower in fp32 in torch, traced on small views; then its graph in memory, on disk, and opened for the comparison."""
    phases, fp32 = ("trace", "write", "compare"), tower.weights("fp32")
    views = 1 if tower.visual.packed else TRACE_VIEWS
    items = (
        PlanItem("export.runtime", TORCH_RUNTIME_BYTES, phases, "torch, transformers and ONNX", "bound"),
        PlanItem("export.weights", fp32, phases, "tower and projector in torch, then in the graph", "exact", "fp32"),
        PlanItem("export.graph", fp32, ("write", "compare"), "the file's copy, then the session's", "bound", "fp32"),
        PlanItem("export.activations", tower.running(views), ("trace", "compare"), f"{views} views", "bound", "fp32"),
    )
    return sum_up(items, budget_bytes=budget_bytes, phases=phases)


def _calibrate(subject: Subject, request: Request, budget_bytes: int) -> Plan:
    """As `quantize` plans it: one decoder layer at a time, and the hidden states of all samples, which a file can take."""
    longest = min(SEQLEN, subject.text.max_positions)
    sizes = quantize_plan.sizes_of(subject, group_size=request.group_size, samples=SAMPLES, longest=longest)
    made = quantize_plan.plan(sizes, 0, method="awq")
    phases, states = made.phases, made.states
    held = f"{SAMPLES} samples of {longest} tokens, a quarter of them three times"
    items = (
        PlanItem("calibrate.runtime", TORCH_RUNTIME_BYTES, tuple(phases), "torch and transformers", "bound"),
        PlanItem("calibrate.states", states, ("encode", "observe", "search"), held, "exact", "fp32"),
        PlanItem("calibrate.tower", phases["encode"] - states, ("encode",), "tower, projector and one image", "bound", "fp32"),
        *(PlanItem(f"calibrate.{name}", phases[name], (name,), how, "bound", "fp32") for name, how in _OF_LAYER.items()),
    )  # fmt: skip
    return sum_up(items, budget_bytes=budget_bytes, phases=tuple(phases))


def _build(tower: _Tower, request: Request, budget_bytes: int) -> Plan:
    """TensorRT holds the network's weights and the engine's, and runs candidates on real inputs. Not run with TensorRT."""
    phases, stored = ("build",), tower.weights("fp32" if request.vision_dtype == "fp32" else "fp16")
    views = 1 if tower.visual.packed else min(tower.visual.at_once, request.encode_views)
    running = tower.running(
        views, patches=tower.visual.patches, elem_bytes=request.elem_bytes, fused=request.fused_vision
    )
    items = (
        PlanItem("build.runtime", request.runtime_bytes, phases, "context and libraries", "bound"),
        PlanItem("build.weights", 2 * stored, phases, "the network's and the engine's", "bound", request.vision_dtype),
        PlanItem("build.workspace", ENGINE_WORKSPACE_BYTES, phases, "the builder's limit", "exact"),
        PlanItem("build.activations", running, phases, f"{views} views", "bound"),
    )
    return sum_up(items, budget_bytes=budget_bytes, phases=phases)

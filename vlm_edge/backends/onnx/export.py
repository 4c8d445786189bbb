"""A family's vision component (a torch module) -> an ONNX graph that was proven equal to it. Needs the `build` extra.

How the graph is made, and what else there was (torch 2.13, transformers 5.23, opset 20, tiny checkpoints of all families):

- `torch.onnx.export(dynamo=True)` on each family's thin module: all eight export, and agree with transformers for any number of
  views, size of image and number of images in a call. Used for every family.
- `transformers.exporters.OnnxExporter`, with `decompose_multimodal` to find the parts: not used. It runs the whole model on a
  prompt to see what its parts are given, so the language model would have to be loaded; it cuts LLaVA between tower and projector
  and keeps the layers that nobody reads; and its form of Qwen-VL's attention requires segments of one length, which images of
  different sizes, and windows at an image's edge, do not have.
- its `onnxruntime_fusions`: used on the graphs of the first way, for the targets cpu and cuda.

Axes are marked `Dim.DYNAMIC`, which refuses to specialise silently.
"""

from __future__ import annotations

import contextlib
import io
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.onnx import graph_passes, precision
from vlm_edge.backends.onnx.observe import Observation, layer_absmax, observe
from vlm_edge.backends.onnx.parity import Limit, Parity, first_divergence, limit_for, measure, require
from vlm_edge.backends.onnx.precision import LayerRange
from vlm_edge.backends.onnx.runner import OnnxEncoder
from vlm_edge.core import host
from vlm_edge.core.bundle import ParityResult
from vlm_edge.errors import BadInput

OPSET = 20
GRAPH = "model.onnx"
EXTERNAL_BYTES = 64 << 20
"""Graphs with more bytes of weights keep them in model.onnx.data beside the graph; a graph alone ends at 2 GiB."""
FUSED_TARGETS = frozenset({"cpu", "cuda"})
TARGETS = (*sorted(FUSED_TARGETS), "tensorrt")
DTYPES = ("fp32", "fp16", "int8")
TIMED_RUNS = 3
INT8_AIM = 2e-2
"""Relative error that an 8-bit graph should keep; one that does is preferred to a faster one that only keeps the limit."""
Arrays = Mapping[str, NDArray[Any]]
_OUTPUT = "image_features"
_VIEWS = {0: "views"}


@dataclass(frozen=True)
class Int8Candidate:
    """One way of keeping weights in 8 bits: how near it comes, how fast it is (median, one input), how large."""

    scheme: str
    cosine: float
    relative_error: float
    ms: float
    bytes: int
    ok: bool


@dataclass(frozen=True)
class ComponentExport:
    """What was written and what was found on the way.

    files: names in the output folder, the graph first.  inputs: names of the graph's inputs.  ranges: fp16 only, every layer's
    largest magnitude and its type.  smoothed: int8 only, norms whose outlier channels moved into weights.  candidates: int8
    only, what was tried; `scheme` says which was kept and `why` says why.  custom_ops: nodes that are no standard ONNX.
    """

    component: str
    target: str
    dtype: str
    opset: int
    files: tuple[str, ...]
    inputs: tuple[str, ...]
    parity: Parity
    custom_ops: dict[str, int]
    ranges: tuple[LayerRange, ...] = ()
    smoothed: tuple[str, ...] = ()
    candidates: tuple[Int8Candidate, ...] = ()
    scheme: str = ""
    why: str = ""


@dataclass
class Traced:
    """A graph that still reads the torch module's weights, and all that is needed of the module once it is gone.

    `write` takes the graph out.  consumed: weights that are freed once the graph is written. Dropping the module would not do:
    the rewriter's rules hold on to the last graph that they saw.
    """

    component: str
    opset: int
    inputs: Sequence[Arrays]
    observation: Observation
    values: Mapping[str, str]
    absmax: Mapping[str, float] = field(default_factory=dict)
    graph: Any = None
    consumed: Sequence[Any] = ()

    def free_weights(self) -> None:
        """Give the memory of the consumed weights back to the system, whoever refers to them: the graph's session takes as much."""
        for weight in self.consumed:
            weight.data = weight.data.new_empty(0)
        host.release_heap()

    def take(self) -> Any:
        """The graph, which this record then no longer holds."""
        graph, self.graph = self.graph, None
        if graph is None:
            raise ValueError("this component was written already; trace it again")
        return graph


def trace(
    module: Any,
    inputs: Sequence[Arrays],
    *,
    component: str,
    opset: int = OPSET,
    ranges: bool = False,
    consume: bool = False,
) -> Traced:
    """Compute the reference on every input and export the module's graph.

    module: in fp32 and evaluation mode; its `axes` name the sizes that may vary, {input: {axis: name}} (without it: the first
    axis of its only input).  inputs: calibration images and noise as the module's arrays; the first is traced, so each varying
    size in it has to be 2 or more.  ranges: watch every layer's values as well, which fp16 needs.  consume: let `write` free the
    module's weights as soon as the graph holds them, which halves its peak; the module is then of no use.
    """
    import torch

    axes = getattr(module, "axes", None) or dict.fromkeys(inputs[0], _VIEWS)
    short = [name for name, varying in axes.items() if any(inputs[0][name].shape[axis] < 2 for axis in varying)]
    if short:
        raise BadInput(
            f"{', '.join(short)}: an axis of size 1 cannot be exported as a varying one", remedy="trace 2 views"
        )
    observation = observe(module, inputs)
    sample = {name: torch.from_numpy(value) for name, value in inputs[0].items()}
    varying = {name: dict.fromkeys(axes.get(name, {}), torch.export.Dim.DYNAMIC) for name in sample}
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module, (), kwargs=sample, input_names=list(sample), output_names=[_OUTPUT], opset_version=opset,
            dynamic_shapes=varying, dynamo=True,
        )  # fmt: skip
    graph = program.model
    graph_passes.drop_stack_traces(graph)
    graph_passes.name_axes(graph, axes)
    values = graph_passes.layer_values(graph)
    absmax = layer_absmax(module, inputs) if ranges else {}
    consumed = [*module.parameters(), *program.exported_program.state_dict.values()] if consume else ()
    return Traced(component, opset, inputs, observation, values, absmax, graph, consumed)


def write(
    traced: Traced, out: Path, *, dtype: str, target: str, threads: int = 1, atol: float | None = None
) -> ComponentExport:
    """Turn a traced graph into the one for a dtype and a target, prove it, and put it into `out`.

    dtype: fp32, fp16 (trace with ranges) or int8.  target: `tensorrt` leaves standard operators only, `cpu` and `cuda` use ONNX
    Runtime's.  atol: as limit_for has it.  Raises CheckFailed, and leaves nothing behind, when the graph differs from the
    reference; the message names the first layer that does.
    """
    if dtype not in DTYPES or target not in TARGETS:
        known = f"--dtype {'|'.join(DTYPES)} and --target {'|'.join(TARGETS)}"
        raise BadInput(f"there is no export to {dtype} for {target}", remedy=f"choose {known}")
    if dtype == "int8" and target != "cpu":
        raise BadInput(f"8-bit weights are for the CPU, not for {target}", remedy="use --dtype fp16 there")
    limit = limit_for(dtype, atol)
    graph = traced.take()
    ranges: tuple[LayerRange, ...] = ()
    smoothed: tuple[str, ...] = ()
    with _quiet():
        graph_passes.fold_weight_transposes(graph)
        constants = graph_passes.weights(graph)
        if dtype == "fp16":
            ranges = precision.guard(traced.absmax)
            precision.to_fp16(graph, ranges)
        elif dtype == "int8":
            graph_passes.gemms_to_matmuls(graph)
            smoothed = precision.smooth(graph, traced.observation.channel_absmax)
        if target in FUSED_TARGETS and dtype != "int8":
            graph_passes.fuse(graph, target)
    with _workspace(out) as folder:
        base = folder / dtype
        _save(graph, base)
        graph_passes.drop((*constants, *graph_passes.weights(graph)))
        traced.free_weights()
        candidates: tuple[Int8Candidate, ...] = ()
        scheme = why = ""
        if dtype == "int8":
            candidates, scheme, why = _choose_int8(traced, base, threads, limit)
            base = folder / scheme
        parity = _gate(traced, base, dtype, threads, limit)
        files = _publish(base, out)
        made = _load(out / GRAPH)
    return ComponentExport(
        traced.component, target, dtype, traced.opset, files, tuple(value.name for value in made.graph.inputs), parity,
        graph_passes.custom_ops(made), ranges, smoothed, candidates, scheme, why,
    )  # fmt: skip


def export_encoder(module: Any, pixels: NDArray[np.float32], out: Path) -> ParityResult:
    """Export a module (pixels [B, 3, S, S] -> features [B, P, Dl]) in fp32 and standard operators, with a varying B.

    pixels: two views or more.  Raises CheckFailed, and leaves nothing behind, when the graph differs or is not finite.
    """
    traced = trace(module, [{"pixel_values": pixels}], component="vision+projector")
    return write(traced, out, dtype="fp32", target="tensorrt").parity.results()[1]


def _gate(traced: Traced, folder: Path, dtype: str, threads: int, limit: Limit) -> Parity:
    outputs = _outputs(traced, folder, threads)
    parity = measure(traced.component, dtype, outputs, traced.observation.outputs, limit=limit)
    if not parity.ok:
        most, layers = limit.relative_error, traced.observation.layers
        require(parity, first_divergence(folder / GRAPH, traced.inputs[0], layers, traced.values, limit=most))
    return parity


def _outputs(traced: Traced, folder: Path, threads: int) -> list[NDArray[np.float32]]:
    encoder = OnnxEncoder(folder / GRAPH, target="cpu", threads=threads)
    return [encoder.encode(arrays, check=False) for arrays in traced.inputs]


def _choose_int8(traced: Traced, base: Path, threads: int, limit: Limit) -> tuple[tuple[Int8Candidate, ...], str, str]:
    """Make each scheme's graph beside the fp32 one; of those that pass, the fastest within the aim is kept."""
    candidates = []
    for scheme in precision.int8_schemes(exact=host.exact_int8_products()):
        graph = _load(base / GRAPH)
        # Rounding first: once fused, attention would swallow the weights of query, key and value in fp32.
        with _quiet():
            precision.INT8_SCHEMES[scheme](graph)
            graph_passes.fuse(graph, "cpu")
        folder = base.with_name(scheme)
        _save(graph, folder)
        del graph
        outputs = _outputs(traced, folder, threads)
        parity = measure(traced.component, "int8", outputs, traced.observation.outputs, limit=limit)
        size = sum(file.stat().st_size for file in folder.iterdir())
        speed = _median_ms(folder, traced.inputs[0], threads)
        candidates.append(Int8Candidate(scheme, parity.cosine, parity.relative_error, speed, size, parity.ok))
    passing = [candidate for candidate in candidates if candidate.ok]
    if not passing:
        nearest = min(candidates, key=lambda candidate: candidate.relative_error)
        return tuple(candidates), nearest.scheme, "none is within the limits; this one is nearest"
    best = min(passing, key=lambda candidate: (candidate.relative_error > INT8_AIM, candidate.ms))
    others = [candidate for candidate in candidates if candidate is not best]
    reasons = [
        f"{best.ms:.2f} ms at {best.relative_error:.2%}, {other.scheme} {other.ms:.2f} ms at {other.relative_error:.2%}"
        f"{'' if other.ok else ', beyond the limits'}"
        for other in others
    ]
    return tuple(candidates), best.scheme, "; ".join(reasons)


def _median_ms(folder: Path, arrays: Arrays, threads: int) -> float:
    encoder = OnnxEncoder(folder / GRAPH, target="cpu", threads=threads)
    encoder.encode(arrays, check=False)
    times = []
    for _ in range(TIMED_RUNS):
        start = time.perf_counter()
        encoder.encode(arrays, check=False)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def _save(graph: Any, folder: Path) -> None:
    import onnx_ir as ir

    folder.mkdir()
    weights = sum(
        value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None
    )
    ir.save(graph, folder / GRAPH, external_data=f"{GRAPH}.data" if weights > EXTERNAL_BYTES else None)


def _load(path: Path) -> Any:
    import onnx_ir as ir

    return ir.load(path)


def _publish(folder: Path, out: Path) -> tuple[str, ...]:
    """Move finished files into `out`, the graph last: a graph never stands there without its data."""
    out.mkdir(parents=True, exist_ok=True)
    names = sorted((file.name for file in folder.iterdir()), reverse=True)
    for name in names:
        (folder / name).replace(out / name)
    return tuple(reversed(names))


@contextlib.contextmanager
def _workspace(out: Path) -> Iterator[Path]:
    """A folder that is gone afterwards, on the file system of `out`; raises BadInput when nothing can be written there."""
    try:
        with tempfile.TemporaryDirectory(dir=_existing(out), prefix=".export-") as name:
            yield Path(name)
    except OSError as cause:
        raise BadInput(
            f"{out} cannot be written: {cause}", remedy="free space there, or name another folder"
        ) from cause


def _existing(path: Path) -> Path:
    """The nearest folder that exists, so that what is made there can be renamed into place."""
    while not path.is_dir():
        path = path.parent
    return path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its steps and warns of its own future; our checks say what counts."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)

"""Is a graph the same function as the module that it came from? Measures, limits, and where a wrong graph begins to differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.onnx.observe import LayerSample
from vlm_edge.backends.onnx.session import LOG_FATAL_ONLY, PROVIDERS, import_runtime
from vlm_edge.core.bundle import ParityResult
from vlm_edge.core.contracts import Floats
from vlm_edge.errors import CheckFailed

Arrays = Mapping[str, NDArray[Any]]
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class Limit:
    """The least cosine and the largest ||graph - reference|| / ||reference|| (Frobenius) over all inputs.

    max_error: the largest difference of one value; None where nobody asked for such a limit, since what is much depends on the
    size of the values.
    """

    cosine: float
    relative_error: float
    max_error: float | None = None


LIMITS = {
    "fp32": Limit(cosine=0.999_999, relative_error=1e-4),  # another order of additions, and no more
    "fp16": Limit(cosine=0.999_8, relative_error=2e-2),  # 11 bits, a few tens of roundings one after another
    "int4": Limit(cosine=0.999, relative_error=4.5e-2),  # a decoder against its own rounded weights: int8 activations
    # Fifteen levels a key or value cost what they cost, which is reported; this finds a cache that is wrong.
    "int4 with an int4 cache": Limit(cosine=0.95, relative_error=0.35),
    "int8": Limit(cosine=0.999, relative_error=4e-2),  # the aim is 2e-2; narrow towers average over fewer channels
}


@dataclass(frozen=True)
class Parity:
    """A graph against its reference: the worst value over all inputs of each measure, and what was allowed."""

    component: str
    dtype: str
    cosine: float
    relative_error: float
    max_error: float
    finite: bool
    limit: Limit

    @property
    def ok(self) -> bool:
        """Finite, and within all limits."""
        return all(row.ok for row in self.results())

    def results(self) -> tuple[ParityResult, ...]:
        """The rows for a manifest."""
        near = self.finite and self.cosine >= self.limit.cosine
        close = self.finite and self.relative_error <= self.limit.relative_error
        rows = (
            ParityResult(self.component, "cosine", self.cosine, self.limit.cosine, near),
            ParityResult(self.component, "relative_error", self.relative_error, self.limit.relative_error, close),
        )
        most = self.limit.max_error
        if most is None:
            return rows
        within = self.finite and self.max_error <= most
        return *rows, ParityResult(self.component, "max_error", self.max_error, most, within)


@dataclass(frozen=True)
class Divergence:
    """The first module whose output in the graph is not what torch computes. `layer` is its path inside the component."""

    layer: str
    relative_error: float


def limit_for(dtype: str, atol: float | None = None) -> Limit:
    """The table's limits of a dtype; atol: the largest difference of one value, beside them."""
    return replace(LIMITS[dtype], max_error=atol)


def relative_error(measured: NDArray[Any], expected: NDArray[Any]) -> float:
    """||measured - expected|| / ||expected||; infinite where a value is not finite or shapes differ."""
    if measured.shape != expected.shape or not np.isfinite(measured).all():
        return float("inf")
    difference = np.linalg.norm((measured - expected).astype(np.float64))
    return float(difference / max(float(np.linalg.norm(expected.astype(np.float64))), 1e-12))


def cosine(measured: NDArray[Any], expected: NDArray[Any]) -> float:
    """Of all values as one vector; -1 where a value is not finite or shapes differ."""
    if measured.shape != expected.shape or not np.isfinite(measured).all():
        return -1.0
    a, b = measured.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-24))


def compare(component: str, measured: Floats, expected: Floats, limit: float) -> ParityResult:
    """Relative error alone, for what has a limit of its own; a value that is not finite counts as an infinite error."""
    error = relative_error(measured, expected)
    return ParityResult(component, "relative_error", error, float(limit), error <= limit)


def measure(
    component: str, dtype: str, measured: Sequence[Floats], expected: Sequence[Floats], *, limit: Limit | None = None
) -> Parity:
    """Compare outputs input by input; limit: instead of the table's for this dtype."""
    pairs = list(zip(measured, expected, strict=True))
    finite = all(bool(np.isfinite(m).all()) for m, _ in pairs)
    worst = [float(np.abs(m - e).max()) if m.shape == e.shape else float("inf") for m, e in pairs]
    return Parity(
        component,
        dtype,
        cosine=min(cosine(m, e) for m, e in pairs),
        relative_error=max(relative_error(m, e) for m, e in pairs),
        max_error=max(worst) if finite else float("inf"),
        finite=finite,
        limit=limit or LIMITS[dtype],
    )


def require(parity: Parity, divergence: Divergence | None = None, *, remedy: str = "") -> None:
    """Raise CheckFailed for a parity that is not ok, naming the layer where the graph begins to differ.

    remedy: instead of the one for graphs that torch exported.
    """
    if parity.ok:
        return
    why = (
        f"cosine {parity.cosine:.6f} (at least {parity.limit.cosine}), "
        f"relative error {parity.relative_error:.2e} (at most {parity.limit.relative_error:.0e})"
    )
    atol = parity.limit.max_error
    if atol is not None:
        why += f", largest difference {parity.max_error:.2e} (at most {atol:g})"
    if not parity.finite:
        why = "its values are not finite"
    where = f"; it begins at {divergence.layer}" if divergence else ""
    if divergence and isfinite(divergence.relative_error):
        where += f" ({divergence.relative_error:.2e})"
    cure = {"fp32": "try another --opset, and report the model", "fp16": "export with --dtype fp32"}
    if atol is not None and replace(parity, limit=replace(parity.limit, max_error=None)).ok:
        cure[parity.dtype] = f"--atol {parity.max_error:.2g} or more would allow it; the other limits are kept"
    raise CheckFailed(
        f"the {parity.dtype} {parity.component} graph differs from torch: {why}{where}",
        remedy=remedy or cure.get(parity.dtype, "export with --dtype fp16 or fp32"),
    )


def first_divergence(
    graph: Path, inputs: Arrays, layers: Mapping[str, LayerSample], values: Mapping[str, str], *, limit: float
) -> Divergence | None:
    """Run the graph with its layers' outputs exposed and compare them in the order in which torch finished them.

    inputs: those that the samples were taken on.  values: module path -> name of its output in the graph; layers that the graph
    lost to a fusion are passed over.  Returns None when no layer that can be compared differs by more than `limit`.
    """
    measured = _layer_outputs(graph, inputs, {values[path] for path in layers if path in values})
    for path, reference in layers.items():
        array = measured.get(values.get(path, ""))
        if array is not None and array.size == reference.size:
            error = relative_error(array.reshape(-1)[:: reference.step].astype(np.float32), reference.values)
            if error > limit:
                return Divergence(path, error)
    return None


def _layer_outputs(graph: Path, inputs: Arrays, names: set[str]) -> dict[str, NDArray[Any]]:
    """Values inside the graph, of those that it still has, from a copy in memory: nothing is written beside the graph."""
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    produced = {output for node in model.graph.node for output in node.output}
    present = sorted(names & produced)
    if not present:
        return {}
    already = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in present if name not in already)
    runtime = import_runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = LOG_FATAL_ONLY
    options.add_session_config_entry(_EXTERNAL_FOLDER, str(graph.parent))
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=[PROVIDERS["cpu"]])
    return dict(zip(present, session.run(present, dict(inputs)), strict=True))

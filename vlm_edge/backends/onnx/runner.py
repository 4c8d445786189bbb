"""The vision tower and projector as one ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.onnx.session import open_session
from vlm_edge.core import host
from vlm_edge.core.contracts import Floats
from vlm_edge.core.specs import ModelSpec
from vlm_edge.errors import BadInput, CheckFailed
from vlm_edge.memory.plan import ENCODE_VIEWS

UNSIGNED = ".unsigned_codes"
"""The end of the names of 8-bit weights that are unsigned, which every CPU multiplies exactly."""
_INTEGER_PRODUCT = b"MatMulInteger"


class OnnxEncoder:
    """Runs a graph whose inputs are the arrays that images become, and whose output is visual embeddings.

    A graph of views ([V, ...] in every input, one V) is run on at most ENCODE_VIEWS views at a time; a graph of packed patches
    as a whole, since its parts see each other.  Raises BadInput for a graph that this CPU would compute wrongly.
    """

    def __init__(self, graph: Path, *, target: str, threads: int, providers: Sequence[Any] = ()) -> None:
        if target == "cpu":
            _require_exact_products(graph)
        self._session = open_session(graph, target=target, threads=threads, providers=providers)
        inputs = self._session.get_inputs()
        self._names = tuple(value.name for value in inputs)
        batches = {value.shape[0] for value in inputs}
        self._by_views = len(batches) == 1 and (self._session.get_outputs()[0].shape[0] in batches)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the arrays that `encode` needs, in the graph's order."""
        return self._names

    def check_model(self, model: ModelSpec) -> None:
        """Raise DamagedBundle unless the graph takes the model's views and gives embeddings of its decoder's width."""
        (output, *_), pixels = self._session.get_outputs(), self._names[0]
        expected: dict[str, tuple[int | None, ...]] = {
            output.name: (*[None] * (len(output.shape) - 1), model.projector.output)
        }
        if self._by_views and self._names == ("pixel_values",):
            side = model.geometry.view_px
            expected = {
                pixels: (None, 3, side, side),
                output.name: (None, model.geometry.tokens_per_view, *expected[output.name][2:]),
            }
        self._session.check_shapes(expected)

    def encode(self, pixels: Floats | Mapping[str, NDArray[Any]], *, check: bool = True) -> Floats:
        """Visual embeddings, [V, P, Dl] of views or [rows, Dl] of packed patches.

        pixels: the arrays by name, or the only one.  check: refuse values that are not finite.  Raises BadInput when names do not
        match the graph's, CheckFailed when a value is not finite.
        """
        arrays = pixels if isinstance(pixels, Mapping) else {self._names[0]: pixels}
        if {*arrays} != {*self._names}:
            raise BadInput(
                f"the vision graph takes {', '.join(self._names)}; it was given {', '.join(arrays)}",
                remedy="export the vision encoder again with this version",
            )
        features = self._by_chunks(arrays) if self._by_views else self._run(arrays)
        if check and not np.isfinite(features).all():
            raise CheckFailed(
                "the vision encoder produced values that are not finite",
                remedy="export the vision encoder again with --dtype fp32",
            )
        return features

    def _by_chunks(self, arrays: Mapping[str, NDArray[Any]]) -> Floats:
        views = len(next(iter(arrays.values())))
        most = min(views, ENCODE_VIEWS)
        first = self._run({name: array[:most] for name, array in arrays.items()})
        if most == views:
            return first
        features = np.empty((views, *first.shape[1:]), np.float32)
        features[:most] = first
        for start in range(most, views, most):
            features[start : start + most] = self._run({n: array[start : start + most] for n, array in arrays.items()})
        return features

    def _run(self, arrays: Mapping[str, NDArray[Any]]) -> Floats:
        features: Floats = self._session.run(None, dict(arrays))[0].astype(np.float32, copy=False)
        return features


def _require_exact_products(graph: Path) -> None:
    """Names stand in the file as they are, and large graphs keep their weights in another one."""
    if host.exact_int8_products() or not graph.is_file():
        return
    content = graph.read_bytes()
    if _INTEGER_PRODUCT not in content or UNSIGNED.encode() in content:
        return
    raise BadInput(
        f"{graph} multiplies signed 8-bit integers, which this CPU, without VNNI, does with large errors",
        remedy="export the vision encoder again on this machine with --dtype int8, or with --dtype fp32",
    )

"""Holds an ONNX graph against what TensorRT's parser publishes, before a machine with TensorRT is at hand.

It needs the `onnx` package and no TensorRT. It is a reading of a published table (operator_table.py), not the parser's
own verdict: that falls when the engine is built.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlm_edge.backends.tensorrt import operator_table as table
from vlm_edge.errors import BadInput, CheckFailed, MissingDependency

Kind = Literal[
    "opset",
    "domain",
    "operator",
    "control flow",
    "shape from data",
    "not constant",
    "attribute",
    "inputs",
    "outputs",
    "type",
]

_STANDARD_DOMAINS = ("", "ai.onnx")
_TYPE_NAMES = {
    "FLOAT": "FP32", "FLOAT16": "FP16", "BFLOAT16": "BF16", "FLOAT8E4M3FN": "FP8", "FLOAT4E2M1": "FP4",
}  # fmt: skip
_TYPED_BY_OUTPUT = frozenset({"Cast", "CastLike", "Constant", "ConstantOfShape"})


class _Origin(IntEnum):
    """What a tensor's values follow from; a node's outputs have the largest origin of its inputs."""

    CONSTANT = 0
    SHAPES = 1
    DATA = 2


@dataclass(frozen=True)
class Violation:
    """One reason why TensorRT would refuse a graph, or why the design does. `node` is empty for the whole graph."""

    kind: Kind
    node: str
    op: str
    detail: str

    def __str__(self) -> str:
        where = f"node {self.node!r} ({self.op}): " if self.node else ""
        return f"{where}{self.detail}"


def check_graph(graph: Path) -> tuple[Violation, ...]:
    """Everything in an ONNX file that stands against TensorRT, in the order of the graph's nodes.

    Found: an opset, an operator or a domain (com.microsoft, say) outside the published table; control flow (If, Loop,
    Scan); attributes, inputs and outputs that the table excludes, scatter reductions among them; an element type that an
    operator's row does not list, as INT64 for CumSum or DOUBLE anywhere; and shapes that depend on data.

    A shape depends on data when an operator makes one row per match (NonZero, Unique, Compress, NonMaxSuppression), or
    when an input that decides a shape (of Reshape, Expand, Slice, Range, ... ) is computed from the values of a graph
    input. What is computed from constants and from Shape and Size alone is fine: it is known once the number of views
    is. K of TopK and the axes of reductions must be constants.

    Types are those that the graph declares (its inputs, outputs, initializers and value_info, which torch's exporter
    writes for every tensor); a tensor without a declared type is not judged.  Raises BadInput for a file that is no ONNX
    model, MissingDependency without the onnx package.
    """
    model = _load(graph)
    return tuple(_walk(model))


def require_supported(graph: Path) -> None:
    """Raise CheckFailed, naming the first node at fault, unless `check_graph` finds nothing."""
    found = check_graph(graph)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise CheckFailed(
            f"TensorRT {table.TENSORRT_VERSION} does not take {graph}: {found[0]}{more}",
            remedy="export with --target tensorrt, which writes standard operators with shapes that depend on no data",
        )


def _load(graph: Path) -> Any:
    try:
        import onnx
        import onnx.inliner
    except ImportError as cause:
        raise MissingDependency("the onnx package is not installed", remedy="pip install 'vlm-edge[build]'") from cause
    try:
        model = onnx.load(str(graph), load_external_data=False)
    except Exception as cause:  # protobuf's own errors share no public base class
        raise BadInput(f"{graph} is not an ONNX model: {cause}", remedy="name the model.onnx of an export") from cause
    if not model.graph.node:
        raise BadInput(f"{graph} is not an ONNX model: it has no nodes", remedy="name the model.onnx of an export")
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def _walk(model: Any) -> Iterator[Violation]:
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    version = opsets.get("", opsets.get("ai.onnx", 0))
    if version not in table.OPSETS:
        detail = f"opset {version} is outside {table.OPSETS[0]} to {table.OPSETS[-1]}"
        yield Violation("opset", "", "", detail)
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    types, ranks = _declared(model.graph)
    origins = {value.name: _Origin.DATA for value in model.graph.input}
    origins.update(dict.fromkeys(values, _Origin.CONSTANT))
    for node in model.graph.node:
        if node.op_type == "Constant":
            values.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
        yield from _judge(node, origins, values, types, ranks)
        origins.update(dict.fromkeys(node.output, _origin(node, origins)))


def _origin(node: Any, origins: Mapping[str, _Origin]) -> _Origin:
    if node.op_type in table.RANDOM or node.op_type in table.CONTROL_FLOW:
        return _Origin.DATA
    if node.op_type in ("Shape", "Size"):
        return _Origin.SHAPES
    return max((origins.get(name, _Origin.DATA) for name in node.input if name), default=_Origin.CONSTANT)


def _judge(
    node: Any,
    origins: Mapping[str, _Origin],
    values: Mapping[str, Any],
    types: Mapping[str, str],
    ranks: Mapping[str, int],
) -> Iterator[Violation]:
    def fault(kind: Kind, detail: str) -> Violation:
        name = node.name or f"the maker of {next(iter(node.output), '')}"
        return Violation(kind, name, f"{node.domain}.{node.op_type}" if node.domain else node.op_type, detail)

    op = node.op_type
    if node.domain not in _STANDARD_DOMAINS:
        yield fault("domain", f"the domain {node.domain} is not ONNX's own")
        return
    if op in table.CONTROL_FLOW:
        yield fault("control flow", "the graph branches or loops; an encoder must be one straight piece")
        return
    if op in table.SHAPED_BY_DATA:
        yield fault("shape from data", "the size of its output depends on the data")
    if op not in table.SUPPORTED:
        refused = "is named as unsupported" if op in table.UNSUPPORTED else "is not in the published table"
        yield fault("operator", f"the operator {refused}")
        return
    yield from (fault(kind, detail) for kind, detail in _inputs(node, origins, values, ranks))
    yield from (fault("attribute", detail) for detail in _attributes(node))
    if op in table.FIRST_OUTPUT_ONLY and any(node.output[1:]):
        yield fault("outputs", "only its first output is supported")
    tensor = node.output[0] if op in _TYPED_BY_OUTPUT or not node.input else node.input[0]
    element = types.get(tensor)
    if element is not None and element not in table.SUPPORTED[op]:
        listed = ", ".join(sorted(table.SUPPORTED[op]))
        yield fault("type", f"{tensor} is {element}; the operator takes {listed}")


def _inputs(
    node: Any, origins: Mapping[str, _Origin], values: Mapping[str, Any], ranks: Mapping[str, int]
) -> Iterator[tuple[Kind, str]]:
    op, names = node.op_type, list(node.input)

    def given(positions: tuple[int, ...]) -> Iterator[str]:
        return (names[i] for i in positions if i < len(names) and names[i])

    for name in given(table.SHAPE_INPUTS.get(op, ())):
        if origins.get(name, _Origin.DATA) is _Origin.DATA:
            yield "shape from data", f"its output's shape is decided by {name}, which is computed from data"
    for name in given(table.CONSTANT_INPUTS.get(op, ())):
        if origins.get(name, _Origin.DATA) is not _Origin.CONSTANT:
            yield "not constant", f"{name} must be a constant"
    for name in given(table.FOUR_DIMENSIONS.get(op, ())):
        if ranks.get(name, 4) != 4:
            yield "inputs", f"{name} has {ranks[name]} dimensions; 4 are supported"
    if any(names[table.MOST_INPUTS.get(op, len(names)) :]):
        yield "inputs", f"only its first {table.MOST_INPUTS[op]} inputs are supported"
    if op == "Squeeze" and len(names) < 2 and not any(a.name == "axes" for a in node.attribute):
        yield "inputs", "its axes are left out"
    for name in given((table.ZERO_POINTS[op],) if op in table.ZERO_POINTS else ()):
        if _array(values.get(name)).any():
            yield "inputs", f"the zero point {name} is not zero"
    if op == "TopK" and len(names) > 1 and (_array(values.get(names[1])) >= table.TOPK_LIMIT).any():
        yield "inputs", f"K must be less than {table.TOPK_LIMIT}"


def _attributes(node: Any) -> Iterator[str]:
    import onnx

    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        value = value.decode() if isinstance(value, bytes) else value
        allowed = table.ALLOWED_VALUES.get((node.op_type, attribute.name))
        if allowed is not None and value not in allowed:
            yield f"{attribute.name}={value} is not supported"
        if (node.op_type, attribute.name) in table.ONES_ONLY and any(item != 1 for item in value):
            yield f"{attribute.name}={list(value)} is not supported"


def _declared(graph: Any) -> tuple[dict[str, str], dict[str, int]]:
    """Element types and numbers of dimensions, by tensor."""
    import onnx

    def named(element: int) -> str:
        name = onnx.TensorProto.DataType.Name(element)
        return str(_TYPE_NAMES.get(name, name))

    types = {tensor.name: named(tensor.data_type) for tensor in graph.initializer}
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        tensor = value.type.tensor_type
        if tensor.elem_type:
            types[value.name] = named(tensor.elem_type)
        if tensor.HasField("shape"):
            ranks[value.name] = len(tensor.shape.dim)
    return types, ranks


def _array(tensor: Any) -> Any:
    """A constant's values; none where they are computed or lie in another file. Only zero points and K are asked for."""
    import onnx

    if tensor is None or onnx.external_data_helper.uses_external_data(tensor):
        return np.zeros(0)
    return onnx.numpy_helper.to_array(tensor)

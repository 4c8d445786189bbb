"""Changes to an exported graph (an onnx_ir.Model) that keep its function, and what its nodes say of the module they are from."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_SCOPES = "pkg.torch.onnx.name_scopes"
_STACK_TRACE = "pkg.torch.onnx.stack_trace"
_SYMBOL = re.compile(r"\b[su]\d+\b")
STANDARD_DOMAINS = ("", "ai.onnx")


def owner(node: Any) -> str | None:
    """Path of the innermost module that a node was exported from; None for nodes that an optimizer made."""
    scopes = _scopes(node)
    return scopes[-2] if len(scopes) > 1 else None


def _scopes(node: Any) -> list[str]:
    text = node.metadata_props.get(_SCOPES)
    scopes: list[str] = ast.literal_eval(text) if text else []
    return scopes


def drop_stack_traces(model: Any) -> None:
    """The exporter notes on every node from which lines of which files it came: this machine's paths, in every bundle."""
    for node in model.graph:
        node.metadata_props.pop(_STACK_TRACE, None)


def weights(model: Any) -> list[Any]:
    """The graph's constants as they are now."""
    return list(model.graph.initializers.values())


def drop(constants: Iterable[Any]) -> None:
    """Let go of constants that have been written: the rewriter's rules keep the last graph that they saw, and what it had."""
    for value in constants:
        value.const_value = None


def layer_values(model: Any) -> dict[str, str]:
    """Module path -> name of the value that is its output: the last one made inside it that something outside reads."""
    outputs: dict[str, str] = {}
    for node in model.graph:
        paths = _scopes(node)[1:-1]
        for value in node.outputs:
            readers = [{*_scopes(user)[:-1]} for user, _ in value.uses()]
            for path in paths:
                if value.is_graph_output() or any(path not in reader for reader in readers):
                    outputs[path] = value.name
    return outputs


def custom_ops(model: Any) -> dict[str, int]:
    """How many nodes of each operator outside the ONNX standard; empty for a graph that any runtime can read."""
    return dict(Counter(node.op_type for node in model.graph.all_nodes() if node.domain not in STANDARD_DOMAINS))


def name_axes(model: Any, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Call the graph's symbolic sizes by the names of the component's axes instead of torch's `s17`."""
    import onnx_ir as ir

    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, name in axes.get(value.name, {}).items():
            symbol = str(getattr(value.shape[axis], "value", value.shape[axis]))
            if _SYMBOL.fullmatch(symbol):
                names.setdefault(symbol, name)

    def renamed(dim: Any) -> Any:
        text = getattr(dim, "value", None)
        return dim if not isinstance(text, str) else _SYMBOL.sub(lambda found: names.get(found[0], found[0]), text)

    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([renamed(dim) for dim in value.shape])


def fold_weight_transposes(model: Any) -> None:
    """`Transpose` of a weight -> the weight as a transposed view, which is written out in that order and never copied whole.

    torch's exporter folds small ones only; a runtime would copy the large ones when it loads the graph.
    """
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is None or not source.is_initializer() or source.const_value is None:
            continue
        perm = node.attributes.get_ints("perm", None) or range(len(source.const_value.shape))[::-1]
        folded = add_initializer(model, f"{source.name}.transposed", source.const_value.numpy().transpose(perm))
        replace_value(node.outputs[0], folded)
        model.graph.remove(node, safe=True)
    drop_unused(model)


def gemms_to_matmuls(model: Any) -> None:
    """`Gemm` with a constant weight -> `MatMul` and `Add`, the one form that the int8 passes have to know."""
    for node in list(model.graph):
        weight = node.inputs[1] if node.op_type == "Gemm" else None
        if weight is None or not weight.is_initializer() or _scaled_gemm(node):
            continue
        array = weight.const_value.numpy()
        if node.attributes.get_int("transB", 0):
            weight = add_initializer(model, f"{weight.name}.transposed", array.T)
        product = insert_before(node, "MatMul", [node.inputs[0], weight], like=node.outputs[0])
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            product = insert_before(node, "Add", [product, node.inputs[2]], like=node.outputs[0])
        replace_node(node, product)
    drop_unused(model)


def _scaled_gemm(node: Any) -> bool:
    flags = node.attributes
    factors = flags.get_float("alpha", 1.0), flags.get_float("beta", 1.0)
    return factors != (1.0, 1.0) or bool(flags.get_int("transA", 0))


def fuse(model: Any, target: str) -> None:
    """Standard operators -> ONNX Runtime's fused ones for a target (`cpu` or `cuda`), in place."""
    from transformers.exporters.onnxruntime_fusions import fuse_for_onnxruntime

    fuse_for_onnxruntime(model, target)


def add_initializer(model: Any, name: str, array: Any) -> Any:
    """Register an array (or tensor of onnx_ir) as a constant of the graph, once for each name."""
    import onnx_ir as ir

    if name in model.graph.initializers:
        return model.graph.initializers[name]
    tensor = ir.tensor(array, name=name) if isinstance(array, np.ndarray) else array
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape([*tensor.shape]), type=ir.TensorType(tensor.dtype))
    model.graph.register_initializer(value)
    return value


def insert_before(node: Any, op_type: str, inputs: list[Any], *, like: Any = None, **how: Any) -> Any:
    """One more node ahead of `node`, with its metadata; returns its only output, of the shape and type of `like`.

    how: `domain`, `dtype` (instead of like's), and attributes.
    """
    import onnx_ir as ir

    domain, dtype = how.pop("domain", ""), how.pop("dtype", None)
    made = ir.node(op_type, inputs, attributes=how, domain=domain)
    made.metadata_props.update(node.metadata_props)
    if like is not None:
        made.outputs[0].shape, made.outputs[0].dtype = like.shape, like.dtype
    if dtype is not None:
        made.outputs[0].dtype = dtype
    node.graph.insert_before(node, made)
    return made.outputs[0]


def replace_value(old: Any, new: Any) -> None:
    """Let everything that reads `old` read `new`, which takes over the name of a graph's output."""
    name, is_output = old.name, old.is_graph_output()
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    if is_output:
        old.name, new.name = f"{name}.replaced", name


def replace_node(node: Any, output: Any) -> None:
    """Put `output` in the place of a node's only output, keeping its name, so that layers are found in the graph."""
    name = node.outputs[0].name
    replace_value(node.outputs[0], output)
    node.graph.remove(node, safe=True)
    output.name = name


def drop_unused(model: Any) -> None:
    """Remove nodes and constants that nothing reads."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)

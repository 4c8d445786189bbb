"""Graphs by hand: an encoder in miniature, and single nodes that break one rule each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE, PATCHES, WIDTH = 4, 4, 6


def encoder(path: Path, *, kind: int = TensorProto.FLOAT, views: str | int = "views", seed: int = 0) -> Path:
    """pixel_values [views, 3, 4, 4] -> image_features [views, 4, 6]: four patches through a matrix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    matrix = np.random.default_rng(seed).normal(size=(12, WIDTH)).astype(helper.tensor_dtype_to_np_dtype(kind))
    nodes = [
        helper.make_node("Reshape", ["pixel_values", "patches"], ["cut"], "cut"),
        helper.make_node("MatMul", ["cut", "matrix"], ["image_features"], "project"),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("pixel_values", kind, [views, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("image_features", kind, [views, PATCHES, WIDTH])],
        [
            numpy_helper.from_array(matrix, "matrix"),
            numpy_helper.from_array(np.array([-1, PATCHES, 12], np.int64), "patches"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
    return path


def single(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Mapping[str, tuple[int, Sequence[str | int]]],
    constants: Mapping[str, np.ndarray] | None = None,
    opset: int = 20,
    domains: Sequence[str] = (),
) -> Path:
    """A graph of these nodes; its outputs are the last node's, of unstated type."""
    graph = helper.make_graph(
        list(nodes),
        "single",
        [helper.make_tensor_value_info(name, kind, list(shape)) for name, (kind, shape) in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in nodes[-1].output if name],
        [numpy_helper.from_array(values, name) for name, values in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path

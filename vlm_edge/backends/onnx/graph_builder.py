"""Writing a small ONNX graph node by node. Needs the onnx package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.errors import MissingDependency

OPSET = 20
"""As that of exported encoders, so that one can be put behind the other."""
IR_VERSION = 10
Shape = Sequence[int | str]


def import_onnx() -> Any:
    """The onnx module; raises MissingDependency."""
    try:
        import onnx
    except ImportError as cause:
        raise MissingDependency("the onnx package is not installed", remedy="pip install 'vlm-edge[build]'") from cause
    return onnx


class GraphBuilder:
    """Collects nodes and constants; every method returns the name of what it adds.  prefix: of all names but given ones."""

    def __init__(self, prefix: str) -> None:
        self._onnx = import_onnx()
        self._prefix = prefix
        self._nodes: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._values: list[Any] = []

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """A node with one output."""
        return self.ops(kind, *inputs, outputs=(output,), **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: Sequence[str], **attributes: Any) -> tuple[str, ...]:
        """A node with outputs of these names; an empty one gets a name of its own."""
        number = len(self._nodes)
        names = tuple(name or f"{self._prefix}{kind}_{number}_{i}" for i, name in enumerate(outputs))
        self._nodes.append(
            self._onnx.helper.make_node(kind, list(inputs), list(names), f"{self._prefix}{kind}_{number}", **attributes)
        )
        return names

    def constant(self, values: NDArray[Any] | np.generic) -> str:
        """A constant of that type and shape; equal ones are held once."""
        array = np.asarray(values)
        key = str(array.dtype), array.shape, array.tobytes()
        if key not in self._constants:
            self._constants[key] = f"{self._prefix}constant_{len(self._constants)}"
            self._values.append(self._onnx.numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(np.float32(value))

    def integers(self, *values: int) -> str:
        """An int64 vector: axes, a K, a shape."""
        return self.constant(np.array(values, np.int64))

    def floats(self, name: str) -> str:
        """A tensor as float32."""
        return self.op("Cast", name, to=self._onnx.TensorProto.FLOAT)

    def model(self, name: str, inputs: Sequence[tuple[str, Shape]], outputs: Sequence[tuple[str, Any, Shape]]) -> Any:
        """The checked ModelProto.  inputs: float32 tensors and their shapes.  outputs: with their NumPy type."""
        helper = self._onnx.helper

        def info(tensor: str, dtype: Any, shape: Shape) -> Any:
            element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            return helper.make_tensor_value_info(tensor, element, list(shape))

        graph = helper.make_graph(
            self._nodes,
            name,
            [info(tensor, np.float32, shape) for tensor, shape in inputs],
            [info(tensor, dtype, shape) for tensor, dtype, shape in outputs],
            self._values,
        )
        made = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="vlm-edge"
        )
        self._onnx.checker.check_model(made)
        return self._onnx.shape_inference.infer_shapes(made)

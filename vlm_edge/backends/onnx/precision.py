"""fp16 where the values allow it, and 8-bit weights two ways, as changes to an exported graph (an onnx_ir.Model)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vlm_edge.backends.onnx.graph_passes import (
    add_initializer,
    drop_unused,
    gemms_to_matmuls,
    insert_before,
    owner,
    replace_node,
)  # fmt: skip
from vlm_edge.backends.onnx.runner import UNSIGNED
from vlm_edge.core.contracts import Floats

FP16_MAX = 65_504.0
GUARD_FRACTION = 0.25
"""A layer keeps fp32 when calibration shows values above this part of fp16's range; other images may show larger ones."""
FP32_OPS = frozenset({
    "ConstantOfShape", "Cos", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "MaxPool", "Pow", "Range", "Reciprocal",
    "ReduceMean", "ReduceSum", "Resize", "Sin", "Sqrt",
})  # fmt: skip
"""Angles, positions, masks, and sums of squares: 11 bits are too few for them."""
FEEDING_OPS = frozenset({
    "Add", "Cast", "Clip", "Concat", "Div", "Expand", "Gather", "Mul", "Neg", "Reshape", "Slice", "Squeeze", "Sub", "Transpose",
    "Unsqueeze",
})  # fmt: skip
"""Operators that stay in fp32 where all they feed does; otherwise an angle would be rounded before its cosine is taken."""
UNTYPED_OPS = frozenset({"Shape", "Size"})
NBITS_BLOCK = 32
NBITS_INT8_COMPUTE = 4
"""MatMulNBits' accuracy_level: activations are quantized to int8 by block, as the weights are."""
MIDDLE = 128
"""The code that stands for 0 where codes are unsigned."""
OUTLIER_RATIO = 4.0
"""A norm is smoothed when its largest channel exceeds the median one by this factor."""


@dataclass(frozen=True)
class LayerRange:
    """The largest magnitude that calibration saw in a layer, and the type in which it is exported."""

    layer: str
    absmax: float
    dtype: str


def guard(absmax: Mapping[str, float], *, fraction: float = GUARD_FRACTION) -> tuple[LayerRange, ...]:
    """Judge each layer by observe.layer_absmax, the largest first; the module itself is called `(component)`."""
    limit = fraction * FP16_MAX
    ranges = (
        LayerRange(path or "(component)", value, "fp16" if value <= limit else "fp32") for path, value in absmax.items()
    )
    return tuple(sorted(ranges, key=lambda layer: -layer.absmax))


def to_fp16(model: Any, ranges: tuple[LayerRange, ...] = ()) -> None:
    """Give nodes, weights and values fp16, in place; inputs and outputs of the graph keep fp32.

    ranges: layers of dtype `fp32` are left as they are, with casts around them. Weights are converted when they are written.
    """
    import onnx_ir as ir
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    kept = {"" if layer.layer == "(component)" else layer.layer for layer in ranges if layer.dtype == "fp32"}
    wide = _fp32_nodes(model, kept)
    casts: dict[tuple[Any, Any], Any] = {}
    for node in list(model.graph):
        if node.op_type in UNTYPED_OPS:
            continue
        dtype = ir.DataType.FLOAT if node in wide else ir.DataType.FLOAT16
        for index, value in enumerate(node.inputs):
            if value is not None and _is_float(value) and value.dtype != dtype:
                if (value, dtype) not in casts:
                    casts[value, dtype] = _as(model, node, value, dtype)
                node.replace_input_with(index, casts[value, dtype])
        if node.op_type == "Cast" and dtype == ir.DataType.FLOAT16 and _is_float(node.outputs[0]):
            node.attributes["to"] = ir.AttrInt64("to", int(dtype))
        for output in node.outputs:
            if _is_float(output):
                output.dtype = dtype
    for index, output in enumerate(list(model.graph.outputs)):
        if output.dtype == ir.DataType.FLOAT16:
            name, last = output.name, output.producer()
            output.name = f"{name}.fp16"
            cast = ir.node("Cast", [output], attributes={"to": int(ir.DataType.FLOAT)})
            cast.outputs[0].name, cast.outputs[0].shape, cast.outputs[0].dtype = name, output.shape, ir.DataType.FLOAT
            last.graph.append(cast)
            model.graph.outputs[index] = cast.outputs[0]
    drop_unused(model)


def _is_float(value: Any) -> bool:
    import onnx_ir as ir

    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def _fp32_nodes(model: Any, kept: set[str]) -> set[Any]:
    nodes = list(model.graph)
    wide = {node for node in nodes if node.op_type in FP32_OPS or owner(node) in kept}
    for node in reversed(nodes):
        if node.op_type in FEEDING_OPS and not any(output.is_graph_output() for output in node.outputs):
            users = [user for output in node.outputs for user, _ in output.uses()]
            if users and all(user in wide for user in users):
                wide.add(node)
    return wide


def _as(model: Any, node: Any, value: Any, dtype: Any) -> Any:
    """The value in another type: a second constant, converted when written, or a Cast where the value is first needed."""
    import onnx_ir as ir

    if value.is_initializer() and value.const_value is not None:
        name = f"{value.name}.fp16"
        stored = value.const_value

        def halved() -> Any:
            # Minus infinity of a mask becomes the least finite number: a row of -inf alone would be NaN.
            return ir.tensor(np.clip(stored.numpy(), -FP16_MAX, FP16_MAX).astype(np.float16), name=name)

        return add_initializer(model, name, ir.LazyTensor(halved, dtype=dtype, shape=stored.shape, name=name))
    made = insert_before(node, "Cast", [value], like=value, dtype=dtype, to=int(dtype))
    made.name = f"{value.name}.{'fp32' if dtype == ir.DataType.FLOAT else 'fp16'}"
    return made


def smooth(model: Any, channel_absmax: Mapping[str, Floats]) -> tuple[str, ...]:
    """Move outlier channels out of the activations and into the weights that read them; the graph's function stays.

    Where a LayerNormalization feeds only matrix products, channel j of its scale and bias is divided by s_j and row j of the
    weights multiplied by it, s_j = sqrt(largest activation / largest weight) of the channel (SmoothQuant, arXiv 2211.10438, at
    0.5). channel_absmax: norm's path -> [D], from observe. Returns the paths of the norms that were changed.
    """
    changed = []
    for node in list(model.graph):
        largest = channel_absmax.get(owner(node) or "") if node.op_type == "LayerNormalization" else None
        readers = [(user, index) for user, index in node.outputs[0].uses()]
        plain = all(
            user.op_type == "MatMul" and index == 0 and user.inputs[1].is_initializer() for user, index in readers
        )
        if largest is None or not readers or not plain or largest.max() <= OUTLIER_RATIO * np.median(largest):
            continue
        weights = {user.inputs[1].name: user.inputs[1] for user, _ in readers}
        if any(len(weight.const_value.shape) != 2 or len(weight.uses()) != 1 for weight in weights.values()):
            continue
        columns = np.max([np.abs(weight.const_value.numpy()).max(1) for weight in weights.values()], axis=0)
        scale = np.sqrt(np.maximum(largest, 1e-5) / np.maximum(columns, 1e-5)).astype(np.float32)
        for index, value in enumerate(node.inputs[1:], start=1):
            if value is not None:
                divided = value.const_value.numpy() / scale
                node.replace_input_with(index, add_initializer(model, f"{value.name}.smoothed", divided))
        for user, _ in readers:
            weight = user.inputs[1]
            user.replace_input_with(1, _scaled_rows(model, weight, scale))
        changed.append(owner(node) or "")
    drop_unused(model)
    return tuple(changed)


def _scaled_rows(model: Any, weight: Any, scale: Floats) -> Any:
    import onnx_ir as ir

    stored, name = weight.const_value, f"{weight.name}.smoothed"

    def scaled() -> Any:
        return ir.tensor(stored.numpy() * scale[:, None], name=name)

    return add_initializer(model, name, ir.LazyTensor(scaled, dtype=stored.dtype, shape=stored.shape, name=name))


def weights_to_nbits(model: Any) -> int:
    """MatMul with a constant weight -> ONNX Runtime's MatMulNBits at 8 bits, blocks of NBITS_BLOCK; returns how many."""
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer

    config = DefaultWeightOnlyQuantConfig(block_size=NBITS_BLOCK, is_symmetric=False, bits=8)
    quantizer = DefaultWeightOnlyQuantizer(config)

    def product(node: Any, weight: Floats, name: str) -> Any:
        packed, scales, zeros = quantizer.qbits_block_quant(np.ascontiguousarray(weight))
        parts = {"codes": packed, "scales": scales, "zeros": zeros}
        constants = [add_initializer(model, f"{name}.{part}", array) for part, array in parts.items()]
        return insert_before(
            node, "MatMulNBits", [node.inputs[0], *constants], like=node.outputs[0], domain="com.microsoft", K=weight.shape[0],
            N=weight.shape[1], bits=8, block_size=NBITS_BLOCK, accuracy_level=NBITS_INT8_COMPUTE,
        )  # fmt: skip

    count = _replace_products(model, product)
    model.opset_imports["com.microsoft"] = 1
    return count


def weights_to_dynamic_int8(model: Any, *, unsigned: bool = False) -> int:
    """MatMul with a constant weight -> MatMulInteger: 8-bit weights by output channel, activations by tensor at run time.

    Standard operators; ONNX Runtime fuses each group into one kernel. Products of one input share its quantization.
    unsigned: store the same codes as uint8 around a zero point of 128. Products of two unsigned bytes are added in 32 bits on
    every CPU; x86 without VNNI adds those of an unsigned and a signed one in 16 bits and cuts off what does not fit.
    Returns how many products were replaced.
    """
    import onnx_ir as ir

    quantized: dict[Any, tuple[Any, Any, Any]] = {}

    def product(node: Any, weight: Floats, name: str) -> Any:
        given, out = node.inputs[0], node.outputs[0]
        if given not in quantized:
            codes = ir.node("DynamicQuantizeLinear", [given], num_outputs=3)
            codes.outputs[0].shape, codes.outputs[0].dtype = given.shape, ir.DataType.UINT8
            for index, dtype in ((1, ir.DataType.FLOAT), (2, ir.DataType.UINT8)):
                codes.outputs[index].shape, codes.outputs[index].dtype = ir.Shape([]), dtype
            node.graph.insert_before(node, codes)
            quantized[given] = codes.outputs[0], codes.outputs[1], codes.outputs[2]
        codes_, scale, zero = quantized[given]
        steps = np.maximum(np.abs(weight).max(0), 1e-12).astype(np.float32) / np.float32(127)
        rounded = np.clip(np.rint(weight / steps), -127, 127)
        stored = (rounded + MIDDLE).astype(np.uint8) if unsigned else rounded.astype(np.int8)
        constant = add_initializer(model, f"{name}{UNSIGNED if unsigned else '.codes'}", stored)
        by_channel = add_initializer(model, f"{name}.scales", steps)
        none = add_initializer(model, f"{name}.zeros", np.full(len(steps), MIDDLE if unsigned else 0, stored.dtype))
        sums = insert_before(node, "MatMulInteger", [codes_, constant, zero, none], like=out, dtype=ir.DataType.INT32)
        real = insert_before(node, "Cast", [sums], like=out, to=int(ir.DataType.FLOAT))
        both = insert_before(node, "Mul", [scale, by_channel], dtype=ir.DataType.FLOAT)
        both.shape = ir.Shape([len(steps)])
        return insert_before(node, "Mul", [real, both], like=out)

    return _replace_products(model, product)


INT8_SCHEMES: Mapping[str, Callable[[Any], int]] = {
    "matmul_nbits": weights_to_nbits,
    "dynamic": weights_to_dynamic_int8,
    "dynamic_unsigned": partial(weights_to_dynamic_int8, unsigned=True),
}


def int8_schemes(*, exact: bool) -> tuple[str, ...]:
    """Schemes to try on a CPU that multiplies unsigned by signed bytes exactly, or on one that does not.

    Where both kinds of dynamic weights are right, the signed one is as right and quicker.
    """
    left_out = "dynamic_unsigned" if exact else "dynamic"
    return tuple(name for name in INT8_SCHEMES if name != left_out)


def _replace_products(model: Any, product: Callable[[Any, Floats, str], Any]) -> int:
    import onnx_ir as ir

    gemms_to_matmuls(model)
    count = 0
    for node in list(model.graph):
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is None or not weight.is_initializer() or weight.dtype != ir.DataType.FLOAT:
            continue
        array = weight.const_value.numpy()
        if array.ndim == 2:
            replace_node(node, product(node, array, weight.name))
            count += 1
    drop_unused(model)
    return count

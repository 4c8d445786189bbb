"""A KV cache of 8 or 4 bits in a decoder's graph: one scale for each channel of each layer, found by calibration.

    key, value int8 [B, kv_heads, length, head_dim], or two 4-bit values in a byte, uint8 [B, kv_heads, length, head_dim / 2]

Scales are static: ONNX Runtime's attention rounds keys, after their rotation, and values with them as it appends them.
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md, com.microsoft.GroupQueryAttention)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.bundle import atomic_write
from vlm_edge.core.contracts import Floats
from vlm_edge.core.specs import TextSpec

if TYPE_CHECKING:
    from onnx import ModelProto

BITS = {"int8": 8, "int4": 4}
_OPERATOR = "GroupQueryAttention"
_SCALES_AT = 12
"""Where the operator's inputs name the keys' scales; the values' follow."""
_LEAST = 1e-8
"""A channel that was never anything but 0 has a scale, too."""


class Ranges:
    """The largest key and value of each channel that a decoder's cache has held, [layers, 2, kv_heads * head_dim]."""

    def __init__(self, text: TextSpec) -> None:
        self.most: Floats = np.zeros((text.layers, 2, text.kv_heads * text.head_dim), np.float32)
        self.positions = 0

    def add(self, caches: Iterable[tuple[NDArray[np.floating], NDArray[np.floating]]]) -> None:
        """Look at one sequence: keys and values [1, kv_heads, length, head_dim] of every layer."""
        for layer, parts in enumerate(caches):
            for part, values in enumerate(parts):
                found = np.abs(values[0].astype(np.float32)).max(axis=1, initial=0).reshape(-1)
                np.maximum(self.most[layer, part], found, out=self.most[layer, part])
                self.positions += values.shape[2] * (layer + part == 0)

    def scales(self, bits: int) -> Floats:
        """The value of one step, in the shape of `most`: the largest value becomes the largest code."""
        return (np.maximum(self.most, _LEAST) / ((1 << (bits - 1)) - 1)).astype(np.float32)


def limit_name(kind: str) -> str:
    """The row of parity.LIMITS for an int4 decoder with such a cache."""
    return "int4 with an int4 cache" if kind == "int4" else "int4"


def quantize_cache(graph: Path, text: TextSpec, scales: Floats, kind: str) -> None:
    """Give a written decoder such a cache; its other data stay as they are.

    scales: [layers, 2, kv_heads * head_dim].  kind: `int8` or `int4`.
    """
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    _set_attention(model, scales, kind)
    _set_types(model, text, kind)
    with atomic_write(graph) as stream:
        stream.write(model.SerializeToString())


def _set_attention(model: ModelProto, scales: Floats, kind: str) -> None:
    from onnx import helper, numpy_helper

    for node in model.graph.node:
        if node.op_type != _OPERATOR:
            continue
        layer = int(node.input[3].split(".")[1])  # past_key_values.<layer>.key
        names = [f"model.layers.{layer}.attn.{part}_scale" for part in ("k", "v")]
        inputs = [*node.input, *[""] * (_SCALES_AT - len(node.input))][:_SCALES_AT]
        node.input[:] = [*inputs, *names]
        settings = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": BITS[kind]}
        node.attribute.extend(helper.make_attribute(name, value) for name, value in settings.items())
        pairs = zip(names, scales[layer], strict=True)
        model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in pairs)


def _set_types(model: ModelProto, text: TextSpec, kind: str) -> None:
    from onnx import TensorProto

    for value in (*model.graph.input, *model.graph.output):
        if not value.name.startswith(("past_key_values.", "present.")):
            continue
        tensor = value.type.tensor_type
        tensor.elem_type = TensorProto.UINT8 if kind == "int4" else TensorProto.INT8
        if kind == "int4":
            tensor.shape.dim[-1].ClearField("dim_param")
            tensor.shape.dim[-1].dim_value = text.head_dim // 2


def save_scales(scales: Floats, path: Path) -> None:
    """Write keys' and values' scales, float32 [layers, kv_heads * head_dim] each, as a safetensors file."""
    from safetensors.numpy import save

    parts: Sequence[str] = ("key", "value")
    with atomic_write(path) as stream:
        stream.write(save({name: np.ascontiguousarray(scales[:, i]) for i, name in enumerate(parts)}))

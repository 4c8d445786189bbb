"""Norms that multiply by 1 + w, computed in fp32 after onnxruntime-genai's builder has computed them in the stored dtype."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.onnx.unexpected_graph import unexpected_graph
from vlm_edge.core.checkpoint import SINGLE
from vlm_edge.core.shards import TensorRef, read_header, read_tensor
from vlm_edge.core.specs import TextSpec

OFFSET_NORMS = frozenset({"gemma", "gemma2"})
"""Architectures whose norms are stored without the 1."""
_NORM = re.compile(r"model\.layers\.(\d+)\.(\w+_layernorm\.weight)")
_FINAL = "final_norm_layernorm.weight"
_STORED = {"F32": np.float32, "F16": np.float16, "F64": np.float64}


def restore_norms(model: Any, folder: Path, text_dir: Path, text: TextSpec) -> None:
    """Write 1 + w of every norm into the graph's external data, rounded once to the graph's type.

    The builder adds the 1 in bf16 where the checkpoint is bf16, which leaves 8 bits of the sum: on random weights the logits
    of five layers then differ by 2%.  model: the onnx.ModelProto, its data in `folder`.  text_dir: what it was built from.
    Raises CheckFailed when a norm is not where the builder should have put it.
    """
    stored = read_header(text_dir / SINGLE)
    found = {tensor.name: tensor for tensor in model.graph.initializer if _NORM.fullmatch(tensor.name)}
    wanted = sum(name.endswith("norm.weight") for name in stored)
    if len(found) != wanted:
        raise unexpected_graph(f"the decoder's graph has {len(found)} norms, its checkpoint {wanted}")
    for name, tensor in found.items():
        exact = np.float32(1) + _float32(stored[_stored_name(name, text)])
        _overwrite(tensor, folder, exact)


def _stored_name(name: str, text: TextSpec) -> str:
    return "model.norm.weight" if name == f"model.layers.{text.layers}.{_FINAL}" else name


def _float32(tensor: TensorRef) -> NDArray[np.float32]:
    data = read_tensor(tensor)
    if tensor.dtype == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, _STORED[tensor.dtype]).astype(np.float32)


def _overwrite(tensor: Any, folder: Path, values: NDArray[np.float32]) -> None:
    from onnx import helper

    where = {entry.key: entry.value for entry in tensor.external_data}
    data = values.astype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).tobytes()
    if len(data) != int(where["length"]):
        raise unexpected_graph(f"{tensor.name} has {where['length']} bytes in the graph, {len(data)} in the checkpoint")
    with (folder / where["location"]).open("r+b") as stream:
        stream.seek(int(where.get("offset", 0)))
        stream.write(data)

"""A decoder in OpenVINO, timed on request: python -m benchmarks.peers.openvino.decoder FOLDER THREADS

FOLDER: as convert.py leaves it. OpenVINO's defaults for a CPU are kept: it chooses the precision of products and of the KV cache.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import openvino

from benchmarks.peers.decoding import Facts, serve

MODEL = "decoder.xml"
GROUPED = 3
"""Axes of weights that are kept in groups: outputs, groups, values of a group."""
ROW_BYTES = 8
"""Scale and zero point of a cached row of one head, kept beside values of 8 bits."""


class OpenVino:
    """One sequence in one request, which keeps its KV cache."""

    def __init__(self, model: openvino.Model, threads: int, more: Mapping[str, str] = MappingProxyType({})) -> None:
        config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", **more}
        self.compiled = openvino.Core().compile_model(model, "CPU", config)
        self._request = self.compiled.create_infer_request()
        self._length = 0

    def reset(self) -> None:
        self._request.reset_state()
        self._length = 0

    def forward(self, ids: Sequence[int]) -> np.ndarray:
        begin, self._length = self._length, self._length + len(ids)
        inputs = self.given(ids) | {
            "attention_mask": np.ones((1, self._length), np.int64),
            "position_ids": np.arange(begin, self._length, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self._request.infer(inputs, share_inputs=True)
        return self._request.get_tensor("logits").data[0, -1].copy()

    def given(self, ids: Sequence[int]) -> dict[str, np.ndarray]:
        """What stands for tokens in this graph's inputs."""
        return {"input_ids": np.array([ids], np.int64)}


def facts(model: openvino.Model, compiled: openvino.CompiledModel) -> Facts:
    """From the constants of the graph and what the compiled model says of itself."""
    constants = [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]
    embedding = [node for node in constants if "embed_tokens" in node.get_friendly_name()]
    head = [node for node in constants if "lm_head" in node.get_friendly_name()]
    layers = [node for node in constants if ".layers." in node.get_friendly_name() and len(node.shape) > 1]
    if not head or not layers:
        raise SystemExit("the graph's constants have no names that tell layers from lm_head")
    shape = _widest_node(layers).shape
    cache = compiled.get_property("KV_CACHE_PRECISION")
    states = [state.get_partial_shape() for state in _states(model)]
    rows = sum(shape[1].get_length() for shape in states)
    row_bytes = states[0][3].get_length() * cache.size + (ROW_BYTES if cache.size == 1 else 0)
    group = compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")
    products = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return Facts(
        version=f"openvino {openvino.__version__.split('-')[0]}",
        weights=_widest(layers) + (f", groups of {shape[2]}, zero points" if len(shape) == GROUPED else ""),
        head=_widest(head),
        cache=cache.get_type_name(),
        activations=f"{products}, int8 groups of {group} where the CPU allows" if group else products,
        vocabulary=compiled.output("logits").partial_shape[2].get_length(),
        read_bytes=sum(node.get_byte_size() for node in constants if node not in embedding),
        position_bytes=rows * row_bytes,
    )


def _states(model: openvino.Model) -> list:
    """The variables that hold keys and values, [B, kv_heads, length, head_dim] each."""
    return [node.output(0) for node in model.get_ordered_ops() if node.get_type_name() == "ReadValue"]


def _widest_node(nodes: Sequence[openvino.Node]) -> openvino.Node:
    return max(nodes, key=lambda node: node.get_byte_size())


def _widest(nodes: Sequence[openvino.Node]) -> str:
    return _widest_node(nodes).get_element_type().get_type_name()


def main(folder: str, threads: str) -> None:
    model = openvino.Core().read_model(Path(folder) / MODEL)
    decoder = OpenVino(model, int(threads))
    serve(facts(model, decoder.compiled), decoder)


if __name__ == "__main__":
    main(*sys.argv[1:])

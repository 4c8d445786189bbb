"""Where a decoder graph begins to differ: the sum that each of its layers gives, beside samples of transformers' layers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.onnx.decoder_parity import DecoderReferences, layer_sample
from vlm_edge.backends.onnx.parity import Divergence, relative_error
from vlm_edge.backends.onnx.session import LOG_FATAL_ONLY, PROVIDERS, first_line, import_runtime
from vlm_edge.core.specs import TextSpec
from vlm_edge.errors import DamagedBundle

BEHIND = "the final norm or the head"
_NORM = re.compile(r"/model/layers\.(\d+)/(?:input_layernorm|final_norm_layernorm)/")
_SUM = 3
"""Which output of a SkipSimplifiedLayerNormalization is the sum of its two inputs: the hidden state that it norms."""
_NUMPY_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8,
}  # fmt: skip


def first_divergence(graph: Path, text: TextSpec, references: DecoderReferences, *, limit: float) -> Divergence | None:
    """The first layer whose hidden state differs by more than `limit` from the stored samples of transformers'.

    Runs the prompt of one sequence on the CPU in a copy of the graph in memory, with the layers' sums as further outputs; weights
    stay in their file. Returns BEHIND as the layer, with an infinite error, where all layers agree; None where the references
    hold no samples, or the graph's layers cannot be told apart.
    Memory: the graph's weights as far as the system keeps the file's pages, and one prompt's hidden state for each layer.
    """
    if references.layers is None:
        return None
    measured = _hidden_states(graph, text, references)
    if len(measured) != len(references.layers):
        return None
    for index, (found, expected) in enumerate(zip(measured, references.layers, strict=True)):
        error = relative_error(layer_sample(found), expected)
        if error > limit:
            return Divergence(f"layers.{index}", error)
    return Divergence(BEHIND, float("inf"))


def _hidden_states(graph: Path, text: TextSpec, references: DecoderReferences) -> list[NDArray[Any]]:
    """[L, D] behind each layer, for the prompt that `references.layers` was taken on."""
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    names = _expose(model)
    runtime = import_runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = LOG_FATAL_ONLY
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.parent))
    try:
        session = runtime.InferenceSession(model.SerializeToString(), options, providers=[PROVIDERS["cpu"]])
        states = session.run(names, _inputs(session, text, references)) if names else []
    except Exception as cause:  # ONNX Runtime's exceptions share no public base class
        why = f"{graph} does not run with its layers' values: {first_line(cause)}"
        raise DamagedBundle(why, remedy="export the model again") from cause
    return [state[0] for state in states]


def _expose(model: Any) -> list[str]:
    """Make each layer's sum an output of an onnx.ModelProto; its names, layer by layer.

    A layer's output is added up by the norm behind it: that of the next layer's input, or the final one, in which the builder
    leaves out the sum since nothing reads it.
    """
    import onnx

    sums: dict[int, str] = {}
    for node in model.graph.node:
        found = _NORM.match(node.name)
        if found is None or node.op_type != "SkipSimplifiedLayerNormalization":
            continue
        missing = _SUM + 1 - len(node.output)
        if missing > 0:
            node.output.extend([*[""] * (missing - 1), f"{node.name}/sum"])
        sums[int(found[1])] = node.output[_SUM]
    names = [sums[layer] for layer in sorted(sums)]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return names


def _inputs(session: Any, text: TextSpec, references: DecoderReferences) -> dict[str, NDArray[Any]]:
    """One prompt with an empty cache."""
    prompt, sequence = references.prompt, references.sampled
    arrays: dict[str, NDArray[Any]] = {}
    for value in session.get_inputs():
        if value.name == "inputs_embeds":
            arrays[value.name] = references.embeds[sequence, None, :prompt].astype(_NUMPY_TYPES[value.type])
        elif value.name == "attention_mask":
            arrays[value.name] = np.ones((1, prompt), np.int64)
        elif value.name == "position_ids" and references.positions is not None:
            arrays[value.name] = np.ascontiguousarray(references.positions[sequence, :, None, :prompt])
        elif value.name.startswith("past_key_values."):
            # A packed cache names its width, half of head_dim; others leave it open.
            width = value.shape[3] if isinstance(value.shape[3], int) else text.head_dim
            arrays[value.name] = np.zeros((1, text.kv_heads, 0, width), _NUMPY_TYPES[value.type])
    return arrays

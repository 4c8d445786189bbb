"""What a decoder's attention sees, set on a graph after onnxruntime-genai's builder, which leaves two things out."""

from __future__ import annotations

import re
from typing import Any

from vlm_edge.backends.onnx.unexpected_graph import unexpected_graph
from vlm_edge.core.specs import TextSpec

_OPERATOR = "GroupQueryAttention"
_LAYER = re.compile(r"/layers\.(\d+)/")
_NO_WINDOW = -1


def set_attention(model: Any, text: TextSpec) -> None:
    """Give every GroupQueryAttention of an onnx.ModelProto the window and the directions of its layer, in place.

    The builder gives a window only to layers that config.json lists by kind, so that Mistral's is lost; and it never sets
    `causal`, which a bidirectional prefix needs to be 0. With that, ONNX Runtime allows no window; the engine then ends at the
    window's length, up to which there is no difference.  Raises CheckFailed for a graph without such a node in each layer.
    """
    nodes = {_layer(node): node for node in model.graph.node if node.op_type == _OPERATOR}
    if sorted(nodes) != list(range(text.layers)):
        raise unexpected_graph(f"the decoder's graph has {_OPERATOR} in {len(nodes)} of {text.layers} layers")
    for layer, node in nodes.items():
        windowed = layer in text.sliding_layers and not text.bidirectional_prefix
        _set(node, "local_window_size", text.sliding_window if windowed else _NO_WINDOW)
        _set(node, "causal", int(not text.bidirectional_prefix))


def _layer(node: Any) -> int:
    found = _LAYER.search(node.name)
    return int(found[1]) if found else _NO_WINDOW


def _set(node: Any, name: str, value: int) -> None:
    from onnx import helper

    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])

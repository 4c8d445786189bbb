"""The error for a graph of onnxruntime-genai's builder that is not drawn as its supported versions draw it."""

from __future__ import annotations

from vlm_edge.errors import CheckFailed


def unexpected_graph(what: str) -> CheckFailed:
    """what: is wrong with the graph, as the error's message."""
    return CheckFailed(what, remedy="use the onnxruntime-genai version that vlm-edge[build] asks for")

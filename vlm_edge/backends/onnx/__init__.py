"""ONNX Runtime: encoder and decoder on CPU or CUDA."""

from __future__ import annotations

from pathlib import Path

from vlm_edge.core.contracts import Backend, EncoderRunner, LlmEngine
from vlm_edge.core.specs import TextSpec


def _encoder(graph: Path, target: str, threads: int) -> EncoderRunner:
    from vlm_edge.backends.onnx.runner import OnnxEncoder

    return OnnxEncoder(graph, target=target, threads=threads)


def _engine(graph: Path, text: TextSpec, target: str, threads: int, context: int) -> LlmEngine:
    from vlm_edge.backends.onnx.engine import OnnxEngine

    return OnnxEngine(graph, text, target=target, threads=threads, context=context)


BACKEND = Backend("onnx", _encoder, _engine)

"""TensorRT: the vision encoder as an engine of the machine that runs it. Decoders stay with ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from vlm_edge.core.contracts import Backend, EncoderRunner, LlmEngine
from vlm_edge.core.specs import TextSpec
from vlm_edge.errors import BadInput


def _encoder(graph: Path, target: str, _threads: int) -> EncoderRunner:
    """`graph` is an engine, or an ONNX graph with this machine's engine in the same folder."""
    from vlm_edge.backends.tensorrt.build import find_engine
    from vlm_edge.backends.tensorrt.runner import TensorRtEncoder

    if target == "cpu":
        raise BadInput(
            "TensorRT runs on an NVIDIA GPU only", remedy="use --device cuda, or the onnx backend on the CPU"
        )
    return TensorRtEncoder(graph if graph.suffix == ".engine" else find_engine(graph))


def _engine(_graph: Path, _text: TextSpec, _target: str, _threads: int, _context: int) -> LlmEngine:
    raise BadInput("the tensorrt backend has no decoder", remedy="run the decoder with the onnx backend")


BACKEND = Backend("tensorrt", _encoder, _engine)

"""A real engine on a real GPU against ONNX Runtime. Has not been run: no machine with TensorRT was at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from tests.backends.tensorrt import graphs
from vlm_edge.backends.tensorrt.build import ensure_engine
from vlm_edge.backends.tensorrt.library import import_tensorrt
from vlm_edge.backends.tensorrt.runner import TensorRtEncoder
from vlm_edge.backends.tensorrt.settings import BuildSettings
from vlm_edge.errors import VlmEdgeError
from vlm_edge.units import MIB

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def machine() -> None:
    from vlm_edge.backends.tensorrt.cuda import describe_gpu

    try:
        import_tensorrt()
        describe_gpu()
    except VlmEdgeError as error:
        pytest.skip(error.message)


@pytest.mark.parametrize(
    ("kind", "tolerance"), [(TensorProto.FLOAT, 1e-5), (TensorProto.FLOAT16, 2e-3)], ids=["fp32", "fp16"]
)
def test_an_engine_gives_the_numbers_of_onnx_runtime(tmp_path: Path, kind: int, tolerance: float) -> None:
    import onnxruntime

    graph = graphs.encoder(tmp_path / "model.onnx", kind=kind)
    told: list[tuple[str, int, int]] = []
    settings = BuildSettings(2, 3, (3, 4, 4), 64 * MIB)
    engine = ensure_engine(graph, tmp_path, settings, report=lambda *step: told.append(step))
    assert ensure_engine(graph, tmp_path, settings) == engine
    assert told
    pixels = np.random.default_rng(0).normal(size=(7, 3, 4, 4)).astype(np.float32)
    sent = pixels.astype(np.float16 if kind == TensorProto.FLOAT16 else np.float32)
    expected = onnxruntime.InferenceSession(str(graph)).run(None, {"pixel_values": sent})[0].astype(np.float32)
    with TensorRtEncoder(engine) as encoder:
        measured = encoder.encode(pixels)
    assert np.linalg.norm(measured - expected) <= tolerance * np.linalg.norm(expected)

"""An engine's numbers against ONNX Runtime's own, however the views are cut; and engines that cannot be run."""

from __future__ import annotations

import gc
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from tests.backends.tensorrt import graphs
from tests.backends.tensorrt.fake_tensorrt import FakeTensorRt
from vlm_edge.backends.tensorrt import BACKEND
from vlm_edge.backends.tensorrt.build import build_engine
from vlm_edge.backends.tensorrt.engine_key import publish, read_record
from vlm_edge.backends.tensorrt.runner import TensorRtEncoder
from vlm_edge.backends.tensorrt.settings import BuildSettings
from vlm_edge.core import discover
from vlm_edge.core.specs import TextSpec
from vlm_edge.errors import BadInput, CheckFailed, DamagedBundle, DoesNotFit
from vlm_edge.units import MIB

pytestmark = pytest.mark.usefixtures("trt")


def pixels(views: int) -> np.ndarray:
    return np.random.default_rng(views).normal(size=(views, 3, 4, 4)).astype(np.float32)


def reference(graph: Path, views: np.ndarray) -> np.ndarray:
    import onnxruntime

    return onnxruntime.InferenceSession(str(graph)).run(None, {"pixel_values": views})[0]


@pytest.fixture
def engine(graph: Path, settings: BuildSettings) -> Path:
    return build_engine(graph, graph.parent, settings)


@pytest.mark.parametrize("views", [1, 2, 3, 4, 6, 7])
def test_features_equal_onnx_runtimes_for_any_number_of_views(
    trt: FakeTensorRt, graph: Path, engine: Path, views: int
) -> None:
    encoder = TensorRtEncoder(engine)
    np.testing.assert_allclose(encoder.encode(pixels(views)), reference(graph, pixels(views)), rtol=1e-5)
    runs = [event[1][0] for event in trt.events if event[0] == "run"]
    assert runs == [3] * (views // 3) + [views % 3] * (views % 3 > 0)


def test_memory_is_known_after_construction_and_does_not_grow(trt: FakeTensorRt, engine: Path) -> None:
    encoder = TensorRtEncoder(engine)
    held = {address: len(memory) for address, memory in trt.cuda.memory.items()}
    assert sorted(held.values()) == sorted([3 * 3 * 4 * 4 * 4, 3 * 4 * 6 * 4])
    assert encoder.device_bytes == sum(held.values()) + 4096
    for views in (7, 1, 3):
        encoder.encode(pixels(views))
    assert {address: len(memory) for address, memory in trt.cuda.memory.items()} == held


def test_nothing_to_encode_is_no_error(engine: Path) -> None:
    assert TensorRtEncoder(engine).encode(pixels(0)).shape == (0, 4, 6)


def test_views_in_any_layout_and_precision_are_taken(graph: Path, engine: Path) -> None:
    views = pixels(4)
    turned = np.asfortranarray(views.astype(np.float64))
    np.testing.assert_allclose(TensorRtEncoder(engine).encode(turned), reference(graph, views), rtol=1e-5)


def test_a_half_precision_engine_takes_and_gives_fp32(
    trt: FakeTensorRt, tmp_path: Path, settings: BuildSettings
) -> None:
    graph = graphs.encoder(tmp_path / "model.onnx", kind=TensorProto.FLOAT16)
    encoder = TensorRtEncoder(build_engine(graph, tmp_path, settings))
    features = encoder.encode(pixels(5))
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, reference(graph, pixels(5).astype(np.float16)).astype(np.float32))
    assert sum(map(len, trt.cuda.memory.values())) == (3 * 3 * 4 * 4 + 3 * 4 * 6) * 2


def test_another_thread_can_encode(graph: Path, engine: Path) -> None:
    encoder = TensorRtEncoder(engine)
    found: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: found.append(encoder.encode(pixels(2))))
    thread.start()
    thread.join()
    np.testing.assert_allclose(found[0], reference(graph, pixels(2)), rtol=1e-5)


def test_closing_gives_everything_back_and_tensorrts_objects_first(trt: FakeTensorRt, engine: Path) -> None:
    with TensorRtEncoder(engine) as encoder:
        encoder.encode(pixels(1))
        assert trt.alive == 1
    gc.collect()
    assert (trt.alive, trt.cuda.memory, trt.cuda.streams) == (0, {}, {})


def test_values_that_are_not_finite_stop_the_run(engine: Path) -> None:
    views = pixels(4)
    views[3, 1, 2, 2] = np.nan
    with pytest.raises(CheckFailed, match="not finite"):
        TensorRtEncoder(engine).encode(views)


@pytest.mark.parametrize("shape", [(1, 3, 5, 4), (1, 1, 4, 4), (3, 4, 4), (48,)])
def test_views_of_another_shape_are_refused(engine: Path, shape: tuple[int, ...]) -> None:
    encoder = TensorRtEncoder(engine)
    with pytest.raises(BadInput, match=r"do not go into an engine for \[3, 4, 4\]"):
        encoder.encode(np.zeros(shape, np.float32))


@pytest.mark.parametrize("change", ["gpu", "version"])
def test_an_engine_of_another_machine_is_not_opened(
    trt: FakeTensorRt, engine: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    if change == "gpu":
        trt.cuda.name = "Orin"
    else:
        trt.version = "10.16.0.1"
        monkeypatch.setitem(sys.modules, "tensorrt", trt.module())
    with pytest.raises(BadInput, match="was built for NVIDIA Fake RTX 4090") as caught:
        TensorRtEncoder(engine)
    assert "build it again" in caught.value.remedy


def test_changed_bytes_never_reach_tensorrt(engine: Path) -> None:
    engine.write_bytes(b"not an engine")
    with pytest.raises(DamagedBundle):
        TensorRtEncoder(engine)


@pytest.mark.parametrize(
    ("knob", "reason", "message", "remedy"),
    [
        (
            "engine_error",
            "Error Code 1: Serialization (Version tag does not match.)",
            "cannot open",
            "build the engine",
        ),
        ("context_error", "Error Code 2: OutOfMemory (Requested size was 9 bytes.)", "cannot run", "fewer tiles"),
    ],
)
def test_what_tensorrt_refuses_is_told_with_its_reason(
    trt: FakeTensorRt, engine: Path, knob: str, reason: str, message: str, remedy: str
) -> None:
    setattr(trt, knob, reason)
    with pytest.raises(BadInput) as caught:
        TensorRtEncoder(engine)
    assert message in caught.value.message
    assert reason in caught.value.message
    assert remedy in caught.value.remedy


def test_a_run_that_fails_is_told_and_the_encoder_can_go_on(trt: FakeTensorRt, graph: Path, engine: Path) -> None:
    encoder = TensorRtEncoder(engine)
    trt.run_error = "Error Code 1: Cuda Runtime (an illegal memory access was encountered)"
    with pytest.raises(BadInput, match="illegal memory access"):
        encoder.encode(pixels(2))
    assert list(trt.cuda.streams.values()) == [[]]
    trt.run_error = ""
    np.testing.assert_allclose(encoder.encode(pixels(2)), reference(graph, pixels(2)), rtol=1e-5)


def test_an_engine_that_cannot_take_one_view_is_refused(engine: Path) -> None:
    other = engine.read_bytes().replace(b"[1, 3, 4, 4]", b"[2, 3, 4, 4]")
    publish(engine.parent, read_record(engine).key, other)
    with pytest.raises(BadInput, match="no fewer than 2 views"):
        TensorRtEncoder(engine)


def test_buffers_that_do_not_fit_leave_nothing(trt: FakeTensorRt, engine: Path) -> None:
    trt.cuda.limit_bytes = 3 * 3 * 4 * 4 * 4 + 10
    with pytest.raises(DoesNotFit):
        TensorRtEncoder(engine)
    gc.collect()
    assert (trt.alive, trt.cuda.memory) == (0, {})


def test_types_that_numpy_has_not_are_refused(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.backends.tensorrt import fake_engine

    monkeypatch.setattr(fake_engine.CudaEngine, "get_tensor_dtype", lambda *_: fake_engine.DataType.BF16)
    with pytest.raises(BadInput, match="fp32 and fp16 can be run"):
        TensorRtEncoder(engine)


class TestBackend:
    def test_it_is_found_by_its_folder(self) -> None:
        assert discover.backend("tensorrt") is BACKEND

    def test_a_graph_is_run_by_the_engine_beside_it(self, graph: Path, engine: Path) -> None:
        for path in (graph, engine):
            features = BACKEND.encoder(path, "cuda", 1).encode(pixels(2))
            np.testing.assert_allclose(features, reference(graph, pixels(2)), rtol=1e-5)

    def test_a_graph_without_an_engine_is_refused_with_the_remedy(self, graph: Path) -> None:
        with pytest.raises(BadInput, match="has no TensorRT engine"):
            BACKEND.encoder(graph, "cuda", 1)

    def test_the_cpu_and_decoders_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="NVIDIA GPU only"):
            BACKEND.encoder(tmp_path / "model.onnx", "cpu", 1)
        with pytest.raises(BadInput, match="no decoder"):
            BACKEND.engine(tmp_path, TextSpec(1, 1, 1, 1, 1, 1, 1, 1), "cuda", 1, 8)


def test_settings_for_one_view_only_run_one_by_one(graph: Path, tmp_path: Path) -> None:
    one = build_engine(graph, tmp_path / "one", BuildSettings(1, 1, (3, 4, 4), 16 * MIB))
    np.testing.assert_allclose(TensorRtEncoder(one).encode(pixels(3)), reference(graph, pixels(3)), rtol=1e-5)

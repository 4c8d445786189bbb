"""Engines and scripts in a bundle, and the encoder that runs them, with TensorRT and the GPU pretended."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests import exportable
from tests.backends.tensorrt.fake_cuda import FakeCuda
from tests.backends.tensorrt.fake_tensorrt import FakeTensorRt
from vlm_edge.backends.onnx import parity
from vlm_edge.backends.tensorrt import build, runner
from vlm_edge.backends.tensorrt import cuda as driver
from vlm_edge.core.bundle import Bundle, open_bundle, verify_hashes
from vlm_edge.errors import BadInput, CheckFailed, DamagedBundle, MissingDependency
from vlm_edge.pipeline.answering.encoders import decoder_target, open_encoder
from vlm_edge.pipeline.checking.verify import verify_bundle
from vlm_edge.pipeline.exporting import engines, export
from vlm_edge.pipeline.exporting.export import ExportOptions, export_model

ENGINE = ExportOptions(target="tensorrt", backend="tensorrt", threads=1)
SCRIPT = replace(ENGINE, backend="onnx", emit_script=True)
STEM = "nvidia-fake-rtx-4090-sm89-trt10.15.1.29"


@pytest.fixture(autouse=True)
def traced_once() -> Iterator[None]:
    with exportable.exporting_once():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, `tiny`, and a bundle with its graph for TensorRT and the script, `out`."""
    folder = tmp_path_factory.mktemp("engines")
    exportable.save("llava", folder / "tiny")
    with exportable.exporting_once():
        export_model(folder / "tiny", folder / "out", SCRIPT)
    return folder


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(driver, "load_library", lambda: fake)
    return fake


@pytest.fixture
def trt(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    fake = FakeTensorRt(cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", fake.module())
    return fake


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("the model was traced")

    monkeypatch.setattr("vlm_edge.backends.onnx.export.trace", fail)


def roles(bundle: Bundle) -> dict[str, str]:
    return {a.path.rpartition("/")[2]: a.role for a in bundle.manifest.artifacts if a.path.startswith("vision/")}


def builds(trt: FakeTensorRt) -> int:
    return sum(event[0] == "build" for event in trt.events)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_an_export_with_an_engine(made: Path, tmp_path: Path, trt: FakeTensorRt) -> None:
    steps: list[str] = []
    done = export_model(made / "tiny", tmp_path / "out", ENGINE, on_step=steps.append)
    assert steps[5:] == [
        "build the engine",
        "TensorRT: Building Engine",
        "TensorRT: Tactic Selection",
        "compare the engine",
    ]
    bundle = open_bundle(tmp_path / "out")
    verify_hashes(bundle, force=True)
    engine = build.find_engine(bundle.path("vision.graph", target="tensorrt"))
    assert roles(bundle) == {
        "model.onnx": "vision.graph", "references.npz": "vision.references", engine.name: "vision.engine",
        f"{engine.name}.json": "vision.engine.record", f"{STEM}.timing": "tensorrt.timings",
    }  # fmt: skip
    assert {a.path.rpartition("/")[2] for a in done.artifacts} >= {engine.name, "model.onnx"}
    assert [row.metric for row in bundle.manifest.parity if row.component == f"vision/tensorrt/{STEM}"] == [
        "cosine", "relative_error",
    ]  # fmt: skip
    assert bundle.manifest.tools["tensorrt"] == "10.15.1.29"
    assert builds(trt) == 1
    checks = {check.name: check.ok for check in verify_bundle(tmp_path / "out", threads=1).checks}
    assert checks["load vision/tensorrt"]
    assert checks["parity vision/tensorrt relative_error"]
    # the graph exported again: engines of the old one go, what was learned of this GPU stays
    export_model(made / "tiny", tmp_path / "out", replace(ENGINE, backend="onnx"))
    bundle = open_bundle(tmp_path / "out")
    assert {*roles(bundle)} == {"model.onnx", "references.npz", f"{STEM}.timing"}
    assert not engine.exists()
    assert {row.component for row in bundle.manifest.parity} == {"vision/tensorrt"}


@pytest.mark.usefixtures("untraced")
def test_the_bundle_itself_needs_no_model_and_builds_once(out: Path, trt: FakeTensorRt, cuda: FakeCuda) -> None:
    first = export_model(out, out, ENGINE)
    assert [artifact.role for artifact in first.artifacts] == ["vision.engine", "vision.engine.record"]
    again = export_model(out, out, ENGINE)
    assert (again.artifacts, again.parity) == (first.artifacts, first.parity)
    assert builds(trt) == 1
    # a damaged engine is built again, with the timings of the first build
    (out / first.artifacts[0].path).write_bytes(b"x" * first.artifacts[0].bytes)
    export_model(out, out, ENGINE)
    assert ("timings", 1) in trt.events
    verify_hashes(open_bundle(out), force=True)
    # another GPU's engine stands beside it
    cuda.name = "NVIDIA Fake L4"
    export_model(out, out, ENGINE)
    assert sorted(name.partition("-sm")[0] for name, role in roles(open_bundle(out)).items() if role == "vision.engine") == [
        "nvidia-fake-l4", "nvidia-fake-rtx-4090",
    ]  # fmt: skip


@pytest.mark.usefixtures("untraced")
def test_another_tensorrt_refuses_the_engine_until_it_is_built_again(
    out: Path, trt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(out, out, ENGINE)
    trt.version = "10.16.0.1"
    monkeypatch.setitem(sys.modules, "tensorrt", trt.module())
    with pytest.raises(BadInput, match=r"10\.16\.0\.1; there is one for .* 10\.15\.1\.29"):
        open_encoder(open_bundle(out), "tensorrt", 1)
    export_model(out, out, ENGINE)
    assert open_encoder(open_bundle(out), "tensorrt", 1)


@pytest.mark.usefixtures("trt")
def test_an_engine_that_computes_something_else_is_not_entered(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(out)
    monkeypatch.setitem(parity.LIMITS, "fp32", parity.Limit(cosine=0.9, relative_error=1e-12))
    with pytest.raises(CheckFailed, match=f"vision/tensorrt/{STEM} graph differs from torch"):
        export_model(out, out, ENGINE)
    assert contents(out) == before


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("what", ["tensorrt", "driver", "gpu"])
def test_what_is_missing_is_said_before_anything_is_done(
    what: str, made: Path, tmp_path: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None if what == "tensorrt" else FakeTensorRt(cuda).module())
    if what == "driver":
        monkeypatch.undo()
        monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRt(cuda).module())
    cuda.devices = 0 if what == "gpu" else 1
    if what == "driver" and shutil.which("nvidia-smi"):
        pytest.skip("this machine has a driver")
    with pytest.raises((MissingDependency, BadInput)) as caught:
        export_model(made / "tiny", tmp_path / "out", ENGINE)
    assert caught.value.exit_code == 2
    assert caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_a_script_needs_no_tensorrt_and_its_engine_is_taken_over(
    out: Path, trt: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = out / "vision/tensorrt/build_engine.sh"
    assert roles(open_bundle(out))[script.name] == "vision.script"
    text = script.read_text()
    assert "graph=model.onnx" in text
    assert "--maxShapes=pixel_values:1x3x28x28" in text
    assert str(tmp_path) not in text
    subprocess.run(["sh", "-n", str(script)], check=True)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", None)
        assert [artifact.role for artifact in export_model(out, out, SCRIPT).artifacts] == ["vision.script"]
    # what trtexec would leave beside the graph
    graph = open_bundle(out).path("vision.graph", target="tensorrt")
    built = build.build_engine(graph, tmp_path / "elsewhere", engines.settings_of(open_bundle(out)))
    by_script = Path(shutil.copyfile(built, graph.with_suffix(".engine")))
    trt.events.clear()
    before = contents(out)
    with monkeypatch.context() as patch:
        patch.setitem(parity.LIMITS, "fp32", parity.Limit(cosine=0.9, relative_error=1e-12))
        with pytest.raises(CheckFailed, match="does not compute what the bundle's graph") as caught:
            export_model(out, out, ENGINE)
    assert "run build_engine.sh again" in caught.value.remedy
    assert contents(out) == before
    steps: list[str] = []
    export_model(out, out, ENGINE, on_step=steps.append)
    assert steps == ["take over model.engine", "compare the engine"]
    assert builds(trt) == 0
    assert not by_script.exists()
    assert build.find_engine(graph).read_bytes() == built.read_bytes()


@pytest.mark.usefixtures("untraced", "trt")
def test_images_of_any_size_have_no_engines(tmp_path: Path) -> None:
    exportable.save("qwen2_5_vl", tmp_path / "tiny")
    for options in (ENGINE, SCRIPT):
        with pytest.raises(BadInput, match="no TensorRT engines for qwen2_5_vl"):
            export_model(tmp_path / "tiny", tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_a_bundle_without_a_graph_for_tensorrt(made: Path, tmp_path: Path, trt: FakeTensorRt) -> None:
    export_model(made / "tiny", tmp_path / "out", ExportOptions(threads=1))
    with pytest.raises(DamagedBundle, match=r"no vision.graph for tensorrt"):
        export_model(tmp_path / "out", tmp_path / "out", ENGINE)
    assert builds(trt) == 0


@pytest.mark.parametrize(("family", "views"), [("llava", 1), ("llava_next", 3), ("internvl", 4)])
def test_a_profile_is_for_as_many_views_as_the_family_cuts(family: str, views: int, tmp_path: Path) -> None:
    """28 x 56 has two tiles, InternVL's most are four; each has the view of the whole image beside them.

    No call has more than four.
    """
    exportable.save(family, tmp_path / "tiny")
    described = export.source.describe(tmp_path / "tiny")
    least, _, most = engines.profile(export.manifest_of(described, None), described.settings.geometry).shapes()
    assert (least, most) == ((1, 3, 28, 28), (views, 3, 28, 28))


def test_an_engine_computes_what_the_graph_does(out: Path, trt: FakeTensorRt) -> None:
    export_model(out, out, ENGINE)
    bundle = open_bundle(out)
    with open_encoder(bundle, "tensorrt", 1) as encoder:  # type: ignore[attr-defined]
        assert isinstance(encoder, runner.TensorRtEncoder)
        pixels = np.random.default_rng(0).normal(size=(3, 3, 28, 28)).astype(np.float32)
        measured = encoder.encode(pixels)
    session = onnxruntime.InferenceSession(str(bundle.path("vision.graph", target="tensorrt")))
    np.testing.assert_allclose(measured, session.run(None, {"pixel_values": pixels})[0], rtol=1e-5, atol=1e-6)
    assert [event for event in trt.events if event[0] == "run"][-3:] == [("run", (1, 3, 28, 28))] * 3


@pytest.mark.usefixtures("cuda")
def test_without_an_engine_onnx_runtimes_provider_is_taken_where_there_is_one(
    out: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(MissingDependency, match="TensorRT is not installed") as caught:
        open_encoder(open_bundle(out), "tensorrt", 1)
    assert "pip install 'vlm-edge[tensorrt]'" in caught.value.remedy
    start, given = onnxruntime.InferenceSession, []

    class Started:
        """A session on the CPU that says it is on TensorRT."""

        def __init__(self, path: str, options: object, providers: list[Any]) -> None:
            given.extend(providers)
            self._session = start(path, options, providers=["CPUExecutionProvider"])

        def __getattr__(self, name: str) -> Any:
            return getattr(self._session, name)

        def get_providers(self) -> list[str]:
            return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: Started.get_providers(None))  # type: ignore[arg-type]
    monkeypatch.setattr(onnxruntime, "InferenceSession", Started)
    encoder = open_encoder(open_bundle(out), "tensorrt", 1)
    assert encoder.encode(np.zeros((2, 3, 28, 28), np.float32)).shape[0] == 2
    (name, options), (fallback, _) = given
    assert (name, fallback) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert options["trt_profile_max_shapes"] == "pixel_values:1x3x28x28"
    cache = Path(options["trt_engine_cache_path"])
    assert cache.parent.is_dir()
    assert cache.is_relative_to(tmp_path / "cache/vlm-edge/tensorrt")
    monkeypatch.setattr(Started, "get_providers", lambda _: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    )
    with pytest.raises(MissingDependency, match="could not start TensorrtExecutionProvider") as caught:
        open_encoder(open_bundle(out), "tensorrt", 1)
    assert "install the TensorRT and CUDA" in caught.value.remedy


def test_the_decoder_beside_tensorrt_is_cudas() -> None:
    assert {device: decoder_target(device) for device in ("cpu", "cuda", "tensorrt")} == {
        "cpu": "cpu", "cuda": "cuda", "tensorrt": "cuda",
    }  # fmt: skip

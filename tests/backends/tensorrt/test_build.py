"""Building an engine: the exact calls, what is written, and every way in which TensorRT says no."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.backends.tensorrt import graphs
from tests.backends.tensorrt.fake_tensorrt import MAGIC, FakeTensorRt
from vlm_edge.backends.tensorrt import build
from vlm_edge.backends.tensorrt.engine_key import read_record, record_path
from vlm_edge.backends.tensorrt.settings import BuildSettings
from vlm_edge.errors import BadInput, DamagedBundle, MissingDependency
from vlm_edge.units import MIB

pytestmark = pytest.mark.usefixtures("trt")
TIMINGS = "nvidia-fake-rtx-4090-sm89-trt10.15.1.29.timing"


def test_a_build_is_strongly_typed_with_one_profile_and_a_bounded_workspace(
    trt: FakeTensorRt, graph: Path, settings: BuildSettings, tmp_path: Path
) -> None:
    engine = build.build_engine(graph, tmp_path / "out", settings)
    assert trt.events == [
        ("create_network", 1 << 1),
        ("parse", "model.onnx"),
        ("timings", 0),
        ("build", 64 * MIB, []),
    ]
    assert engine.parent == tmp_path / "out"
    assert engine.read_bytes().startswith(MAGIC)
    assert b'"profile": ["pixel_values", [1, 3, 4, 4], [2, 3, 4, 4], [3, 3, 4, 4]]' in engine.read_bytes()
    assert {path.name for path in engine.parent.iterdir()} == {engine.name, f"{engine.name}.json", TIMINGS}


def test_tf32_stays_on_only_where_asked_for(trt: FakeTensorRt, graph: Path, tmp_path: Path) -> None:
    settings = BuildSettings(1, 2, (3, 4, 4), 16 * MIB, tf32=True)
    build.build_engine(graph, tmp_path, settings)
    assert trt.events[-1] == ("build", 16 * MIB, ["TF32"])


def test_timings_of_earlier_builds_are_used_and_kept(
    trt: FakeTensorRt, graph: Path, settings: BuildSettings, tmp_path: Path
) -> None:
    for entries in range(3):
        trt.events.clear()
        build.build_engine(graph, tmp_path, settings)
        assert ("timings", entries) in trt.events
    assert (tmp_path / TIMINGS).read_bytes() == b"timings 10.15.1.29 3"


@pytest.mark.parametrize("content", [b"", b"\x00damaged", b"timings 10.3.0.30 7"], ids=["empty", "damaged", "foreign"])
def test_timings_that_do_not_fit_are_started_anew(
    graph: Path, settings: BuildSettings, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / TIMINGS).write_bytes(content)
    build.build_engine(graph, tmp_path, settings)
    assert (tmp_path / TIMINGS).read_bytes() == b"timings 10.15.1.29 1"


def test_progress_is_told_step_by_step(graph: Path, settings: BuildSettings, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    build.build_engine(graph, tmp_path, settings, report=lambda *step: told.append(step))
    assert told == [
        ("Building Engine", 0, 2),
        ("Tactic Selection", 0, 3),
        ("Tactic Selection", 1, 3),
        ("Tactic Selection", 2, 3),
        ("Tactic Selection", 3, 3),
        ("Tactic Selection", 3, 3),
        ("Building Engine", 2, 2),
    ]


def test_a_version_without_a_monitor_builds_without_progress(
    trt: FakeTensorRt, graph: Path, settings: BuildSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", trt.module(progress=False))
    told: list[object] = []
    assert build.build_engine(graph, tmp_path, settings, report=lambda *step: told.append(step)).is_file()
    assert told == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("terminal is gone")])
def test_what_the_report_raises_cancels_the_build(
    trt: FakeTensorRt, graph: Path, settings: BuildSettings, tmp_path: Path, error: BaseException
) -> None:
    def report(_phase: str, done: int, _steps: int) -> None:
        if done == 1:
            raise error

    with pytest.raises(type(error)):
        build.build_engine(graph, tmp_path / "out", settings, report=report)
    assert trt.events[-1] == ("cancelled",)
    assert not (tmp_path / "out").exists()


def refused(graph: Path, out: Path, settings: BuildSettings) -> BadInput:
    with pytest.raises(BadInput) as caught:
        build.build_engine(graph, out, settings)
    assert not out.exists()
    return caught.value


def test_the_first_parse_error_is_named_with_its_node(
    trt: FakeTensorRt, graph: Path, settings: BuildSettings, tmp_path: Path
) -> None:
    trt.parse_errors = [("/merge/Unique", "Unique", "UNSUPPORTED_NODE"), ("/later", "Det", "UNSUPPORTED_NODE")]
    error = refused(graph, tmp_path / "out", settings)
    assert "node '/merge/Unique' (Unique): UNSUPPORTED_NODE (and 1 more)" in error.message
    assert "--target tensorrt" in error.remedy


def test_a_parse_error_without_a_node_is_still_told(
    trt: FakeTensorRt, graph: Path, settings: BuildSettings, tmp_path: Path
) -> None:
    trt.parse_errors = [("", "", "Failed to parse ONNX model from file")]
    assert refused(graph, tmp_path / "out", settings).message.endswith(
        "model.onnx: Failed to parse ONNX model from file"
    )


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("Error Code 10: Could not find any implementation for node {ForeignNode}.", "workspace"),
        ("[virtualMemoryBuffer.cpp] Error Code 2: OutOfMemory (no further information)", "fewer tiles"),
        ("Requested amount of GPU memory (99 bytes) could not be allocated.", "fewer tiles"),
        ("Error Code 4: Internal Error (something new)\nsecond line", "trtexec"),
    ],
)
def test_a_build_that_fails_tells_the_reason_and_a_remedy(
    trt: FakeTensorRt, graph: Path, settings: BuildSettings, tmp_path: Path, reason: str, remedy: str
) -> None:
    trt.build_error = reason
    error = refused(graph, tmp_path / "out", settings)
    assert reason.splitlines()[0] in error.message
    assert "\n" not in error.message
    assert remedy in error.remedy


def test_reasons_of_an_earlier_failure_are_not_told_again(
    trt: FakeTensorRt, graph: Path, settings: BuildSettings, tmp_path: Path
) -> None:
    trt.build_error = "the first"
    refused(graph, tmp_path / "out", settings)
    trt.build_error = "the second"
    assert "the second" in refused(graph, tmp_path / "out", settings).message


def test_a_builder_that_cannot_start_is_told_with_its_reason(
    trt: FakeTensorRt, graph: Path, settings: BuildSettings, tmp_path: Path
) -> None:
    trt.builder_error = True
    assert "CUDA initialization failure" in refused(graph, tmp_path / "out", settings).message


@pytest.mark.parametrize(
    ("views", "side", "name"), [(8, 4, "pixel_values"), ("views", 5, "pixel_values"), ("views", 4, "images")]
)
def test_a_graph_that_the_settings_do_not_fit_is_refused(
    tmp_path: Path, views: str | int, side: int, name: str
) -> None:
    graph = graphs.encoder(tmp_path / "model.onnx", views=views)
    error = refused(graph, tmp_path / "out", BuildSettings(1, 2, (3, side, side), 64 * MIB, name))
    assert f"pixel_values[{views if views == 8 else -1}, 3, 4, 4]" in error.message
    assert f"{name}[-1, 3, {side}, {side}]" in error.message


def test_a_missing_graph_is_bad_input(settings: BuildSettings, tmp_path: Path) -> None:
    assert "no.onnx" in refused(tmp_path / "no.onnx", tmp_path / "out", settings).message


def test_a_folder_that_cannot_be_written_leaves_nothing(graph: Path, settings: BuildSettings, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(BadInput, match="cannot be written"):
        build.build_engine(graph, blocked / "out", settings)
    assert blocked.read_text() == "in the way"


def test_a_disk_that_fills_up_leaves_no_engine_that_could_be_opened(
    graph: Path, settings: BuildSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlm_edge.core.bundle import atomic_write

    def full(path: Path):
        if path.suffix == ".json":
            raise OSError(28, "No space left on device")
        return atomic_write(path)

    monkeypatch.setattr("vlm_edge.backends.tensorrt.engine_key.atomic_write", full)
    with pytest.raises(BadInput, match="No space left"):
        build.build_engine(graph, tmp_path / "out", settings)
    (engine,) = (tmp_path / "out").glob("*.engine")
    with pytest.raises(DamagedBundle, match="is missing"):
        read_record(engine)


def test_without_tensorrt_the_extra_and_jetpack_are_named(
    graph: Path, settings: BuildSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    for call in (build.build_engine, build.ensure_engine):
        with pytest.raises(MissingDependency) as caught:
            call(graph, tmp_path / "out", settings)
        assert caught.value.exit_code == 2
        assert "vlm-edge[tensorrt]" in caught.value.remedy
        assert "JetPack" in caught.value.remedy


class TestEnsure:
    def test_a_second_call_builds_nothing(
        self, trt: FakeTensorRt, graph: Path, settings: BuildSettings, tmp_path: Path
    ) -> None:
        engine = build.ensure_engine(graph, tmp_path, settings)
        trt.events.clear()
        assert build.ensure_engine(graph, tmp_path, settings) == engine
        assert trt.events == []

    @pytest.mark.parametrize("part", ["gpu", "capability", "tensorrt", "graph", "views", "workspace"])
    def test_any_part_that_differs_builds_another(
        self,
        trt: FakeTensorRt,
        graph: Path,
        settings: BuildSettings,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        part: str,
    ) -> None:
        first = build.ensure_engine(graph, tmp_path, settings)
        match part:
            case "gpu":
                trt.cuda.name = "NVIDIA Fake RTX 4080"
            case "capability":
                trt.cuda.capability = (9, 0)
            case "tensorrt":
                trt.version = "11.1.0.106"
                monkeypatch.setitem(sys.modules, "tensorrt", trt.module())
            case "graph":
                graphs.encoder(graph, seed=1)
            case "views":
                settings = BuildSettings(2, 4, (3, 4, 4), 64 * MIB)
            case "workspace":
                settings = BuildSettings(2, 3, (3, 4, 4), 65 * MIB)
        trt.events.clear()
        second = build.ensure_engine(graph, tmp_path, settings)
        assert second != first
        assert trt.events[-1][0] == "build"
        assert first.is_file()

    @pytest.mark.parametrize("damage", ["cut", "flipped", "record gone", "record cut", "engine gone"])
    def test_a_damaged_engine_is_built_again(
        self, trt: FakeTensorRt, graph: Path, settings: BuildSettings, tmp_path: Path, damage: str
    ) -> None:
        engine = build.ensure_engine(graph, tmp_path, settings)
        whole, record = engine.read_bytes(), record_path(engine)
        match damage:
            case "cut":
                engine.write_bytes(whole[:-1])
            case "flipped":
                engine.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            case "record gone":
                record.unlink()
            case "record cut":
                record.write_text(record.read_text()[:-20])
            case "engine gone":
                engine.unlink()
        trt.events.clear()
        assert build.ensure_engine(graph, tmp_path, settings) == engine
        assert trt.events[-1][0] == "build"
        assert engine.read_bytes() == whole
        assert read_record(engine).engine_bytes == len(whole)


class TestFind:
    def test_the_engine_beside_the_graph_is_found_and_the_newest_taken(
        self, graph: Path, settings: BuildSettings
    ) -> None:
        import os

        older = build.build_engine(graph, graph.parent, settings)
        newer = build.build_engine(graph, graph.parent, BuildSettings(1, 9, (3, 4, 4), 64 * MIB))
        os.utime(older, ns=(1, 1))
        assert build.find_engine(graph) == newer
        os.utime(newer, ns=(0, 0))
        assert build.find_engine(graph) == older

    def test_an_engine_of_another_gpu_is_named_and_refused(
        self, trt: FakeTensorRt, graph: Path, settings: BuildSettings
    ) -> None:
        build.build_engine(graph, graph.parent, settings)
        trt.cuda.name = "Orin"
        with pytest.raises(BadInput) as caught:
            build.find_engine(graph)
        assert "for Orin" in caught.value.message
        assert "there is one for NVIDIA Fake RTX 4090 (compute capability 8.9)" in caught.value.message
        assert "build it again" in caught.value.remedy

    def test_an_engine_of_an_older_graph_is_refused(self, graph: Path, settings: BuildSettings) -> None:
        build.build_engine(graph, graph.parent, settings)
        graphs.encoder(graph, seed=5)
        with pytest.raises(BadInput, match="another graph"):
            build.find_engine(graph)

    def test_a_folder_without_engines_says_so(self, graph: Path) -> None:
        with pytest.raises(BadInput, match="has no TensorRT engine for NVIDIA Fake RTX 4090"):
            build.find_engine(graph)

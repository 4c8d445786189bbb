"""Opening sessions: an installation without ONNX Runtime or with two of it, missing targets, graphs that are none."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vlm_edge.backends.onnx import session
from vlm_edge.errors import BadInput, DamagedBundle, DoesNotFit, MissingDependency

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def with_installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Make the metadata of these distributions, and of no other, be found."""
    known = {name.replace("_", "-"): version for name, version in versions.items()}

    def version(name: str) -> str:
        if name not in known:
            raise metadata.PackageNotFoundError(name)
        return known[name]

    monkeypatch.setattr(metadata, "version", version)


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """A graph that adds its input to itself."""
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "x"], ["y"])], "double", value[:1], value[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_a_graph_runs_on_the_cpu(doubling: Path) -> None:
    opened = session.open_session(doubling, target="cpu", threads=1)
    (result,) = opened.run(None, {"x": np.array([1, 2], np.float32)})
    assert result.tolist() == [2, 4]
    assert opened.get_session_options().intra_op_num_threads == 1


def test_both_variants_at_once_are_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch, doubling: Path) -> None:
    with_installed(monkeypatch, onnxruntime="1.32.0", onnxruntime_gpu="1.31.1")
    with pytest.raises(MissingDependency, match="both installed") as caught:
        session.open_session(doubling, target="cpu", threads=1)
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in caught.value.remedy
    assert caught.value.exit_code == 2


def test_no_variant_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with_installed(monkeypatch)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match="is not installed") as caught:
        session.available_targets()
    assert "pip install 'vlm-edge[cpu]'" in caught.value.remedy


def test_an_installed_runtime_that_does_not_import_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with_installed(monkeypatch, onnxruntime="1.32.0")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match=r"cannot be imported: .*onnxruntime"):
        session.import_runtime()


@pytest.mark.parametrize(("providers", "targets"), [
    (["CPUExecutionProvider"], ("cpu",)),
    (["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"], ("cpu", "cuda")),
])  # fmt: skip
def test_targets_follow_the_providers(
    monkeypatch: pytest.MonkeyPatch, providers: list[str], targets: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(get_available_providers=lambda: providers))
    assert session.available_targets() == targets


def test_a_target_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, doubling: Path) -> None:
    monkeypatch.setattr(session, "available_targets", lambda: ("cpu",))
    with pytest.raises(BadInput, match="no cuda"):
        session.open_session(doubling, target="cuda", threads=1)


def test_falling_back_to_the_cpu_is_no_cuda_session(monkeypatch: pytest.MonkeyPatch, doubling: Path) -> None:
    import onnxruntime

    start = onnxruntime.InferenceSession

    def fall_back(path: str, options: object, providers: list[str]) -> object:
        """What onnxruntime-gpu does where CUDA's libraries are missing."""
        assert providers == ["CUDAExecutionProvider"]
        return start(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(session, "available_targets", lambda: ("cpu", "cuda"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    with pytest.raises(MissingDependency, match="could not start CUDAExecutionProvider"):
        session.open_session(doubling, target="cuda", threads=1)


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x08" + b"\xff" * 100])
def test_a_file_that_is_no_graph_is_a_damaged_bundle(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(DamagedBundle, match=r"model\.onnx cannot be loaded") as caught:
        session.open_session(tmp_path / "model.onnx", target="cpu", threads=1)
    assert "\n" not in caught.value.message


def test_a_graph_that_is_cut_or_missing_is_a_damaged_bundle(doubling: Path) -> None:
    content = doubling.read_bytes()
    doubling.write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedBundle):
        session.open_session(doubling, target="cpu", threads=1)
    doubling.unlink()
    with pytest.raises(DamagedBundle):
        session.open_session(doubling, target="cpu", threads=1)


def test_what_a_graph_cannot_take_is_an_error_of_the_bundle(doubling: Path, capfd: pytest.CaptureFixture[str]) -> None:
    opened = session.open_session(doubling, target="cpu", threads=1)
    for wrong in (np.zeros((2, 2), np.float32), np.zeros(2, np.int64)):
        with pytest.raises(DamagedBundle, match=r"model\.onnx does not fit") as caught:
            opened.run(None, {"x": wrong})
        assert "\n" not in caught.value.message
    assert capfd.readouterr().err == ""


def test_memory_that_ran_out_is_no_fault_of_the_bundle(doubling: Path) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Failed to allocate memory for requested buffer of size 68719476736")

    with pytest.raises(DoesNotFit, match="memory ran out"):
        session.Graph(SimpleNamespace(run=fail), doubling).run(None, {})


def test_memory_that_ran_out_while_a_graph_was_loaded_is_none_either(
    doubling: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL : Load model from {doubling} failed:std::bad_alloc")

    monkeypatch.setattr(session.import_runtime(), "InferenceSession", fail)
    with pytest.raises(DoesNotFit, match=r"memory ran out while model\.onnx was loaded"):
        session.open_session(doubling, target="cpu", threads=1)


@pytest.mark.parametrize(
    ("expected", "why"),
    [
        ({"z": (None,)}, "has no z"),
        ({"x": (None, None)}, r"has x \[n\]; the manifest's model needs \[any, any\]"),
        ({"x": (None,), "y": ()}, "has y"),
    ],
)
def test_shapes_that_differ_are_named(doubling: Path, expected: dict[str, tuple[int | None, ...]], why: str) -> None:
    opened = session.open_session(doubling, target="cpu", threads=1)
    opened.check_shapes({"x": (None,), "y": (5,)})  # the graph leaves n open
    with pytest.raises(DamagedBundle, match=why):
        opened.check_shapes(expected)


def test_a_folder_whose_name_is_no_text(doubling: Path) -> None:
    odd = doubling.parent / os.fsdecode(b"b\xff")
    odd.mkdir()
    opened = session.open_session(doubling.rename(odd / "model.onnx"), target="cpu", threads=1)
    assert opened.run(None, {"x": np.ones(1, np.float32)})[0].tolist() == [2]


def test_messages_keep_one_line() -> None:
    assert session.first_line(ValueError("a\nb")) == "a"
    assert session.first_line(ValueError()) == "ValueError"

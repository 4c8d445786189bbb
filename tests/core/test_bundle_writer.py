"""Adding to a bundle: nobody else's files are touched, and a crash at any moment leaves a bundle that is right."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vlm_edge.core.bundle import Manifest, open_bundle, verify_hashes
from vlm_edge.core.bundle_writer import Staged, checked, locked, present, publish
from vlm_edge.errors import BadInput, DamagedBundle
from vlm_edge.pipeline.embedded import NANO

SOURCE = {"config": "1", "tensors": "2"}
OLD = {"vision/cpu/model.onnx": b"old graph", "vision/cpu/model.onnx.data": b"old weights", "config.json": b"{}"}
NEW = {"vision/cpu/model.onnx": b"new graph with its weights inside", "config.json": b"{}", "vision/cpu/r.npz": b"rows"}


class Crash(BaseException):
    """The process ends here."""


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Manifest:
    """A manifest that lists nothing; hashes that were checked are remembered elsewhere."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return replace(open_bundle(NANO).manifest, source=SOURCE, artifacts=())


def put(out: Path, files: dict[str, bytes], empty: Manifest) -> None:
    with locked(out) as stage:
        for path, data in files.items():
            (stage / path).parent.mkdir(parents=True, exist_ok=True)
            (stage / path).write_bytes(data)
        staged = [Staged(path, "vision.graph" if path.endswith("onnx") else "file", "cpu") for path in files]
        publish(out, stage, staged, empty, old=present(out, SOURCE, "it"))


def contents(out: Path) -> dict[str, bytes]:
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {path: data for path, data in files.items() if path not in ("manifest.json", ".lock")}


def test_files_are_added_replaced_and_dropped(tmp_path: Path, empty: Manifest):
    out = tmp_path / "new" / "out"
    put(out, OLD, empty)
    assert contents(out) == OLD
    put(out, NEW, empty)
    assert contents(out) == NEW
    bundle = open_bundle(out)
    verify_hashes(bundle, force=True)
    assert [artifact.path for artifact in bundle.manifest.artifacts] == sorted(NEW)


def test_a_file_that_was_damaged_is_mended_by_the_same_content(tmp_path: Path, empty: Manifest):
    put(tmp_path / "out", OLD, empty)
    (tmp_path / "out/vision/cpu/model.onnx").write_bytes(b"OLD graph")
    put(tmp_path / "out", OLD, empty)
    verify_hashes(open_bundle(tmp_path / "out"), force=True)


def test_a_crash_at_any_moment_leaves_no_bundle_that_is_wrong(
    tmp_path: Path, empty: Manifest, monkeypatch: pytest.MonkeyPatch
):
    """Every rename fails in turn, as if the process ended there; the next run then gets through."""

    rename = Path.replace
    for moment in range(100):
        out, left = tmp_path / str(moment), moment
        put(out, OLD, empty)

        def counted(self: Path, target: Path) -> Path:
            nonlocal left
            if left == 0:
                raise Crash
            left -= 1
            return rename(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", counted)
            try:
                put(out, NEW, empty)
                crashed = False
            except Crash:
                crashed = True
        verify_hashes(open_bundle(out), force=True)
        put(out, NEW, empty)
        assert contents(out) == NEW
        if not crashed:
            break
    assert moment == 4  # the manifest without what changes, two files, the final manifest


def test_a_folder_that_got_nothing_is_removed_again(tmp_path: Path):
    with pytest.raises(RuntimeError), locked(tmp_path / "out"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_file_elsewhere_that_cannot_be_read_is_not_put_down_to_the_bundle(tmp_path: Path):
    with pytest.raises(BadInput, match="nowhere") as caught, locked(tmp_path / "out"):
        (tmp_path / "nowhere/image.png").read_bytes()
    assert "cannot be written" not in caught.value.message
    with pytest.raises(BadInput, match="out cannot be written"), locked(tmp_path / "out") as stage:
        (stage / "missing/file").write_bytes(b"")


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path):
    (tmp_path / "out/.export-1234/vision").mkdir(parents=True)
    assert present(tmp_path / "out", SOURCE, "it") is None
    with locked(tmp_path / "out") as stage:
        assert [path for path in stage.parent.iterdir() if path.name.startswith(".export-")] == [stage]


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_a_writer_that_is_killed_over_its_first_manifest_can_go_on(tmp_path: Path):
    program = """
import os, signal, sys
from pathlib import Path
from vlm_edge.core.bundle import atomic_write
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
with atomic_write(Path(sys.argv[1]) / "manifest.json") as stream:
    stream.write(b"{}")
"""
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", program, str(out)], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name.startswith(".manifest.json.") for path in out.iterdir()] == [True]
    assert present(out, SOURCE, "it") is None
    with locked(out) as stage:
        assert {path.name for path in out.iterdir()} == {".lock", stage.name}


@pytest.mark.skipif(sys.platform == "win32", reason="has no flock")
def test_two_writers_do_not_meet(tmp_path: Path):
    program = """
import sys
from pathlib import Path
from vlm_edge.core.bundle_writer import locked
locked(Path(sys.argv[1])).__enter__()
"""
    with locked(tmp_path / "out"):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "out")],
            cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert "another command is writing" in done.stderr


def test_another_models_bundle_is_refused(tmp_path: Path, empty: Manifest):
    put(tmp_path, OLD, empty)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for source in ({"config": "1", "tensors": "3"}, {"checkpoint": "1"}, {}):
        with pytest.raises(BadInput, match="another model"):
            present(tmp_path, source, "it")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert present(tmp_path, SOURCE | {"vision": "5"}, "it") is not None


def test_other_peoples_folders_and_damaged_bundles_are_refused(tmp_path: Path, empty: Manifest):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(BadInput, match=r"thesis\.tex"):
        present(tmp_path, SOURCE, "it")
    with pytest.raises(BadInput, match="is a file"):
        present(tmp_path / "thesis.tex", SOURCE, "it")
    put(tmp_path / "out", OLD, empty)
    (tmp_path / "out/config.json").write_text("{ }")
    with pytest.raises(DamagedBundle, match=r"config\.json"):
        present(tmp_path / "out", SOURCE, "it")


def test_a_model_of_impossible_sizes_is_the_models_fault(empty: Manifest):
    with pytest.raises(BadInput, match="max_model_len"):
        checked(replace(empty, limits=replace(empty.limits, max_model_len=0)))

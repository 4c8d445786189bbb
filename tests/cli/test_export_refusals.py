"""What export is given and cannot use: exit code 2, two lines on stderr, and nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import vlm_edge.models
from tests import exportable
from tests.fake_hub import speaking_to
from vlm_edge.cli.main import execute
from vlm_edge.core.bundle import open_bundle, verify_hashes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, `tiny`, the same in shards, `shards`, and a bundle of it, `out`."""
    folder = tmp_path_factory.mktemp("models")
    exportable.save("llava", folder / "tiny")
    exportable.save("llava", folder / "shards", max_shard_size="100KB")
    with exportable.exporting_once():
        assert execute(["--quiet", "export", str(folder / "tiny"), str(folder / "out")]) == 0
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a refusal would come only after minutes of work."""

    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("the model was traced")

    monkeypatch.setattr("vlm_edge.backends.onnx.export.trace", fail)


def contents(folder: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != ".lock"}


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path, command: str = "export") -> tuple[str, str]:
    """The command ends with 2; returns its error and what it says to do about it."""
    capsys.readouterr()
    assert execute(["--quiet", command, *map(str, words)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    error, fix = shown.err.splitlines()
    assert error.startswith("error: ")
    assert fix.startswith("fix: ")
    return error, fix


def weights(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, model / "model.safetensors")


def config(model: Path, **fields: Any) -> None:
    plain = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(plain | fields))


def without_a_shard(model: Path) -> None:
    shutil.rmtree(model)
    shutil.copytree(model.with_name("shards"), model)
    next(model.glob("model-00002-*")).unlink()


def without_a_tensor(model: Path) -> None:
    weights(model, lambda tensors: tensors.pop(next(name for name in tensors if name.endswith("linear_1.weight"))))


def cut(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def lying(model: Path) -> None:
    path = model / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    name = next(name for name in header if "linear_1.weight" in name)
    header[name]["data_offsets"][1] += 4
    changed = json.dumps(header).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + data[8 + size :])


def only_a_pickle(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def vision_of_another_size(model: Path) -> None:
    plain = json.loads((model / "config.json").read_text())
    plain["vision_config"]["intermediate_size"] += 8
    (model / "config.json").write_text(json.dumps(plain))


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize(
    ("damage", "said", "cure"),
    [
        (without_a_shard, "lacks 1 shard: 'model-00002-of-", "download what is missing"),
        (without_a_tensor, "linear_1.weight", ""),
        (cut, "model.safetensors", ""),
        (lying, "linear_1.weight", ""),
        (only_a_pickle, "a pickle, which can run code", "save_pretrained"),
        (lambda model: config(model, model_type="lava"), "'lava' is not supported", "the nearest supported one is 'llava'"),
        (lambda model: config(model, auto_map={"AutoModel": "code.Model"}), "needs Python code of its own", "-hf"),
        (vision_of_another_size, "fc1", ""),
        (shutil.rmtree, "is not a folder", "name the folder"),
    ],
    ids=["shard", "tensor", "cut", "lying", "pickle", "type", "code", "shapes", "missing"],
)  # fmt: skip
def test_a_checkpoint_that_cannot_be_used(
    damage: Callable[[Path], object], said: str, cure: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(copy / "tiny")
    before = contents(copy / "out")
    for out in (copy / "new", copy / "out"):
        error, fix = refused(capsys, copy / "tiny", out)
        if out.exists() and "another model" in error:
            continue  # what was damaged is part of what says which model it is
        assert said in error
        assert cure in fix
    assert not (copy / "new").exists()
    assert contents(copy / "out") == before


@pytest.mark.usefixtures("untraced")
def test_an_output_that_holds_something_else(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exportable.save("llava", copy / "other", seed=5)
    (copy / "thesis").mkdir()
    (copy / "thesis/chapter.tex").write_text("...")
    before = contents(copy)
    assert "holds another model, tiny" in refused(capsys, copy / "other", copy / "out")[0]
    assert "holds files that are no bundle's" in refused(capsys, copy / "tiny", copy / "thesis")[0]
    assert "is a file" in refused(capsys, copy / "tiny", copy / "thesis/chapter.tex")[0]
    assert contents(copy) == before


@pytest.mark.usefixtures("untraced")
@pytest.mark.skipif(sys.platform != "linux", reason="/proc can be written by nobody")
def test_an_output_that_nobody_can_write(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error, fix = refused(capsys, made / "tiny", "/proc/self/out")
    assert "/proc/self/out cannot be written" in error
    assert "name another folder" in fix


@pytest.mark.usefixtures("untraced")
@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_an_output_without_permission(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "out").chmod(0o555)
    before = contents(copy / "out")
    assert "cannot be written" in refused(capsys, copy / "tiny", copy / "out")[0]
    (copy / "out").chmod(0o755)
    assert contents(copy / "out") == before


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes; the system refuses the write, as it does on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [100, 4_000, 100_000], ids=["configuration", "references", "graph"])
def test_a_disk_that_is_full(size: int, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(copy / "out")
    for out in (copy / "new", copy / "out"):
        with exportable.exporting_once(), largest_file(size):
            error, fix = refused(capsys, copy / "tiny", out, "--dtype", "int8")
        assert "cannot be written" in error
        assert "free space there" in fix
    assert not (copy / "new").exists()
    assert contents(copy / "out") == before
    verify_hashes(open_bundle(copy / "out"), force=True)


@pytest.mark.parametrize("command", ["export", "quantize", "verify"])
def test_a_model_of_the_hub_that_is_not_here(
    command: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = "made-here/tiny-llava"
    words = [model, tmp_path / "new"] if command != "verify" else [made / "out", model]
    with speaking_to("http://127.0.0.1:9", tmp_path / "cache"):
        error, fix = refused(capsys, *words, "--offline", command=command)
    assert f"{model} is not in the local cache" in error
    assert "leave out --offline" in fix
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--backend", "tensorrt"], "TensorRT is not installed"),
        (["--backend", "tensorrt", "--target", "cuda"], "not built for cuda"),
        (["--backend", "openvino"], "no backend 'openvino'"),
        (["--atol", "-1"], "--atol -1 is no limit"),
        (["--revision", "main"], "--revision is for models of the hub"),
    ],
)
def test_options_that_cannot_be_met(
    words: list[str], said: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert said in refused(capsys, made / "tiny", tmp_path / "out", *words)[0]
    assert not (tmp_path / "out").exists()


FAMILY = """
from dataclasses import replace
from vlm_edge.models.llava import FAMILY
FAMILY = replace(FAMILY, name="halfway", model_types=("halfway",))
"""
PARTS = {"components": "", "images": "from vlm_edge.models.llava.images import *\n"}


@pytest.mark.parametrize(("there", "missing"), [(("components",), "images"), (("components", "images"), "prompt")])
def test_a_family_that_is_not_finished_names_the_file_that_it_lacks(
    there: tuple[str, ...],
    missing: str,
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = copy / "families" / "halfway"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(FAMILY)
    for part in there:
        (folder / f"{part}.py").write_text(PARTS[part])
    monkeypatch.setattr("vlm_edge.models.__path__", [*vlm_edge.models.__path__, str(folder.parent)])
    config(copy / "tiny", model_type="halfway")
    try:
        error, fix = refused(capsys, copy / "tiny", copy / "new")
    finally:
        for name in [name for name in sys.modules if name.startswith("vlm_edge.models.halfway")]:
            del sys.modules[name]
        vars(vlm_edge.models).pop("halfway", None)
    assert f"the model family halfway has no {missing}.py" in error
    assert "models/halfway/" in fix
    assert not (copy / "new" / "manifest.json").exists()

"""What verify says of bundles that are right, changed, wrong, of another model, or not to be run here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests import exportable, tiny_decoders
from tests.pipeline.answering.test_hostile_bundles import reseal
from vlm_edge.backends.onnx import export as onnx_export
from vlm_edge.core.bundle import open_bundle
from vlm_edge.errors import BadInput, DamagedBundle, MissingDependency
from vlm_edge.pipeline import written
from vlm_edge.pipeline.checking.checks import Check, Verification
from vlm_edge.pipeline.checking.verify import verify_bundle, write_report
from vlm_edge.pipeline.checking.vision import ASK_TORCH
from vlm_edge.pipeline.embedded import NANO
from vlm_edge.pipeline.exporting import example_inputs, tools
from vlm_edge.pipeline.exporting.export import ExportOptions, export_model

GRAPH = "vision/cpu/model.onnx"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a checkpoint, `tiny`, its bundle, `out`, and another with the weights beside the graph, `apart`."""
    folder = tmp_path_factory.mktemp("verify")
    exportable.save("llava", folder / "tiny")
    with exportable.exporting_once(), pytest.MonkeyPatch.context() as patch:
        export_model(folder / "tiny", folder / "out", ExportOptions(threads=1))
        patch.setattr(onnx_export, "EXTERNAL_BYTES", 1000)
        export_model(folder / "tiny", folder / "apart", ExportOptions(threads=1))
    return folder


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


def checked(root: Path | str, model: Path | None = None) -> Verification:
    return verify_bundle(root, model, threads=1)


def named(found: Verification) -> dict[str, Check]:
    assert len({check.name for check in found.checks}) == len(found.checks)
    return {check.name: check for check in found.checks}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewrite_weight(root: Path, part: str, change: Any) -> None:
    """Change the first weight whose name has `part`, in the graph or beside it, and make every hash fit again."""
    model = onnx.load(str(root / GRAPH), load_external_data=False)
    weight = next(w for w in model.graph.initializer if part in w.name)
    if weight.external_data:
        place = {entry.key: int(entry.value) for entry in weight.external_data if entry.key in ("offset", "length")}
        with (root / f"{GRAPH}.data").open("r+b") as data:
            data.seek(place["offset"])
            changed = change(np.frombuffer(data.read(place["length"]), np.float32))
            data.seek(place["offset"])
            data.write(changed.astype(np.float32).tobytes())
    else:
        changed = change(numpy_helper.to_array(weight)).astype(np.float32)
        weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
        onnx.save(model, str(root / GRAPH))
    reseal(root)


def test_a_right_bundle_with_and_without_torch(made: Path) -> None:
    before = contents(made)
    steps: list[str] = []
    found = verify_bundle(made / "out", made / "tiny", threads=1, on_step=steps.append)
    assert steps == ["hash the files", "run MODEL with torch", "check vision/cpu"]
    assert contents(made) == before
    assert found.ok
    checks = named(found)
    assert {check.ok for check in found.checks} == {True}
    files = {f"file {artifact.path}" for artifact in open_bundle(made / "out").manifest.artifacts}
    assert {*checks} == files | {
        "manifest", "source config", "source tensors", "source vision", "load vision/cpu", "finite vision/cpu",
        "parity vision/cpu cosine", "parity vision/cpu relative_error", "torch vision/cpu cosine",
        "torch vision/cpu relative_error",
    }  # fmt: skip
    assert {*named(checked(made / "out"))} == {name for name in checks if not name.startswith(("source", "torch"))}
    parity = checks["torch vision/cpu relative_error"]
    assert 0 < parity.value < parity.limit == 1e-4
    plain = found.to_json()
    assert {*plain["checks"][0]} == {"name", "ok", "value", "limit", "note"}
    assert json.loads(json.dumps(plain))["ok"] is True


def test_the_embedded_bundle_has_no_references_and_needs_no_torch() -> None:
    program = """
import sys
from vlm_edge.pipeline.checking.verify import verify_bundle
found = verify_bundle("nano", threads=1)
print(found.ok, [check.name for check in found.checks if check.ok is None])
print({"torch", "transformers", "onnx", "onnx_ir"} & {*sys.modules})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[3])  # fmt: skip
    assert done.stdout.splitlines() == ["True ['parity vision/cpu', 'parity llm/cpu']", "set()"]


def test_the_embedded_bundle_is_its_checkpoint() -> None:
    checkpoint = Path(__file__).parents[3] / "recipes/nano/checkpoint"
    checks = named(checked("nano", checkpoint))
    assert checks["source checkpoint"].ok
    assert checks["torch vision/cpu relative_error"].ok
    assert checks["finite llm/cpu"].ok


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "note"),
    [
        (flip, "another one"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "the manifest says"),
        (Path.unlink, "is missing"),
    ],
    ids=["changed", "cut", "missing"],
)
def test_a_file_that_is_not_what_was_written(damage: Any, note: str, out: Path) -> None:
    damage(out / "vision/cpu/references.npz")
    found = checked(out)
    assert [check.name for check in found.failures] == ["file vision/cpu/references.npz"]
    assert note in found.failures[0].note
    assert named(found)["vision/cpu"].ok is None  # what was changed is not run


@pytest.mark.parametrize("change", [{"name": "another"}, {"limits": {"max_tiles": 0, "max_model_len": 64}}])
def test_a_manifest_that_was_changed(change: dict[str, Any], out: Path) -> None:
    plain = json.loads((out / "manifest.json").read_text()) | change
    (out / "manifest.json").write_text(json.dumps(plain))
    found = checked(out)
    assert [check.name for check in found.failures] == ["manifest"]
    assert named(found)["files"].ok is None


@pytest.mark.parametrize("kind", ["out", "apart"])
def test_a_graph_that_computes_something_else(kind: str, made: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(made / kind, tmp_path / kind))
    rewrite_weight(root, "layers.2.mlp.fc1.bias", lambda bias: bias + 1)
    before = contents(root)
    found = checked(root)
    assert {check.name for check in found.failures} == {"parity vision/cpu cosine", "parity vision/cpu relative_error"}
    assert found.failures[0].note == ASK_TORCH
    where = named(checked(root, made / "tiny"))["torch vision/cpu relative_error"]
    assert where.ok is False
    assert "it begins in vision/cpu at tower.layers.2.mlp.fc1 " in where.note
    assert contents(root) == before


def test_a_graph_whose_values_are_not_finite(out: Path) -> None:
    rewrite_weight(out, "layers.2.mlp.fc1.bias", lambda bias: np.full_like(bias, np.nan))
    checks = named(checked(out))
    assert checks["finite vision/cpu"].ok is False
    assert checks["finite vision/cpu"].value > 0
    assert checks["parity vision/cpu cosine"].ok is False


def test_a_graph_that_is_none(out: Path) -> None:
    (out / GRAPH).write_bytes(b"no graph")
    found = checked(reseal(out))
    assert [check.name for check in found.failures] == ["load vision/cpu"]


@pytest.mark.parametrize(("target", "why"), [("cuda", "no cuda"), ("npu", "no npu")])
def test_a_target_that_this_machine_cannot_run_is_not_a_yes(target: str, why: str, out: Path) -> None:
    def other(plain: Any) -> None:
        for artifact in plain["artifacts"]:
            if artifact["role"] == "vision.graph":
                artifact["target"] = target

    checks = named(checked(reseal(out, other)))
    assert checks[f"vision/{target}"].ok is None
    assert why in checks[f"vision/{target}"].note
    assert not [name for name in checks if name.startswith(("load", "finite", "parity"))]


def test_a_largest_difference_that_was_asked_for_is_kept(out: Path) -> None:
    def ask(plain: Any) -> None:
        plain["parity"].append(
            {"component": "vision/cpu", "metric": "max_error", "value": 0.0, "limit": 1e-12, "ok": True}
        )

    failures = checked(reseal(out, ask)).failures
    assert [(check.name, check.limit) for check in failures] == [("parity vision/cpu max_error", 1e-12)]


def test_references_of_other_images_decide_nothing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = example_inputs.example_images()
    monkeypatch.setattr(example_inputs, "example_images", lambda: images[::-1])
    checks = named(checked(out))
    assert checks["parity vision/cpu"].ok is None
    assert "not those" in checks["parity vision/cpu"].note


@pytest.mark.parametrize(("family", "name"), [("llava", "source vision"), ("paligemma", "source config")])
def test_another_model_than_the_bundles(family: str, name: str, made: Path, tmp_path: Path) -> None:
    exportable.save(family, tmp_path / "other", seed=5)
    found = checked(made / "out", tmp_path / "other")
    assert name in {check.name for check in found.failures}
    assert named(found)["torch"].ok is None
    assert named(found)["parity vision/cpu cosine"].ok
    assert not [check for check in found.checks if check.name.startswith("torch vision")]


def test_the_report_lies_in_the_bundle_and_changes_nothing_else(out: Path) -> None:
    before = contents(out)
    found = checked(out)
    path = write_report(found)
    assert path == out / "reports/verify.json"
    assert json.loads(path.read_text()) == json.loads(json.dumps(found.to_json()))
    assert {name: data for name, data in contents(out).items() if name != path} == before
    assert checked(out).ok


def test_a_report_that_cannot_be_written(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(written, "atomic_write", fail)
    with pytest.raises(BadInput, match="Read-only"):
        write_report(checked(out))


def test_what_cannot_be_checked_at_all(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DamagedBundle, match="is empty"):
        checked(tmp_path)
    with pytest.raises(BadInput, match="not a folder"):
        checked(made / "out", tmp_path / "no-model")
    find = tools.importlib.util.find_spec
    monkeypatch.setattr(tools.importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    with pytest.raises(MissingDependency, match="comparing with MODEL needs torch"):
        checked(made / "out", made / "tiny")
    assert checked(made / "out").ok


def test_the_embedded_bundle_is_meant_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert checked("nano").root == NANO


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a decoder alone, whose references come with it."""
    folder = tmp_path_factory.mktemp("decoder")
    tiny_decoders.save("llava", folder / "tiny", "llama")
    with tiny_decoders.builder_in_process():
        export_model(folder / "tiny", folder / "out", ExportOptions(components=("llm",), threads=1))
    return folder / "out"


def test_a_decoder_is_compared_with_its_references(decoder: Path):
    checks = named(checked(decoder))
    assert checks["load llm/cpu"].ok
    assert checks["finite llm/cpu"].ok
    error = checks["parity llm/cpu relative_error"]
    assert error.ok
    assert 0 < error.value < error.limit


def test_a_decoder_that_changed_is_found_by_its_references(decoder: Path, tmp_path: Path):
    root = Path(shutil.copytree(decoder, tmp_path / "out"))
    data = root / "llm/cpu/model.onnx.data"
    weights = np.frombuffer(data.read_bytes(), np.float32).copy()
    weights[len(weights) // 2 :] *= 1.5
    data.write_bytes(weights.tobytes())
    reseal(root)
    checks = named(checked(root))
    assert checks["load llm/cpu"].ok
    assert checks["parity llm/cpu relative_error"].ok is False
    assert "it begins in llm/cpu at layers." in checks["parity llm/cpu relative_error"].note


def test_references_of_another_decoder_are_refused(decoder: Path, tmp_path: Path):
    root = Path(shutil.copytree(decoder, tmp_path / "out"))
    rows = root / "llm/cpu/references.npz"
    with np.load(rows) as stored:
        arrays = dict(stored)
    np.savez(rows, **{**arrays, "embeds": arrays["embeds"][:, :, :-4]})
    reseal(root)
    assert named(checked(root))["parity llm/cpu"].note == "its references are those of another decoder"
    rows.write_bytes(b"no archive")
    reseal(root)
    assert named(checked(root))["parity llm/cpu"].ok is False

"""A checkpoint's tower and projector into a bundle, against transformers' own get_image_features."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import exportable, runnable, tiny_vlms
from vlm_edge.backends.onnx import export as onnx_export
from vlm_edge.backends.onnx import parity, references
from vlm_edge.backends.onnx.runner import OnnxEncoder
from vlm_edge.core.bundle import Bundle, open_bundle, verify_hashes
from vlm_edge.core.geometry import TileGeometry
from vlm_edge.errors import BadInput, CheckFailed, DamagedBundle, MissingDependency
from vlm_edge.models import weights
from vlm_edge.pipeline.answering.run import Pipeline
from vlm_edge.pipeline.embedded import NANO
from vlm_edge.pipeline.exporting import example_inputs, export, source, tools
from vlm_edge.pipeline.exporting.export import ExportOptions, export_model
from vlm_edge.vision.sources import load_image

OTHERS = sorted({*exportable.PREPROCESSORS} - {"llava", "qwen2_5_vl"})
FAST = ExportOptions(threads=1)


@pytest.fixture(scope="module", autouse=True)
def traced_once() -> Iterator[None]:
    with exportable.exporting_once():
        yield


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, `tiny`, and the bundle that was made of it, `out`."""
    folder = tmp_path_factory.mktemp("llava")
    exportable.save("llava", folder / "tiny")
    export_model(folder / "tiny", folder / "out", FAST)
    return folder


@pytest.fixture
def copy(llava: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(llava, tmp_path / "copy"))


def page_error(family: str, model: Any, bundle: Bundle, target: str = "cpu") -> float:
    """The bundle's graph on a page that our own preprocessing prepares, against transformers on the same pixels."""
    images = importlib.import_module(f"vlm_edge.models.{family}.images")
    config, file = (
        json.loads((bundle.root / name).read_text()) for name in ("config.json", "preprocessor_config.json")
    )
    prepared = images.prepare(load_image(exportable.PAGE).pixels, images.settings_from(config, file))
    encoder = OnnxEncoder(bundle.path("vision.graph", target=target), target="cpu", threads=1)
    encoder.check_model(bundle.manifest.model)
    measured = encoder.encode({name: prepared.arrays[name] for name in encoder.inputs})
    arrays = {name: prepared.arrays[name] for name in encoder.inputs}
    if prepared.layout.grid_thw is not None:
        arrays["grid"] = np.array([prepared.layout.grid_thw])
    with torch.no_grad():
        expected = tiny_vlms.FAMILIES[family].reference(model, arrays)
    return parity.relative_error(measured.reshape(expected.shape), expected)


@pytest.mark.parametrize(
    "family", ["llava", "qwen2_5_vl", *(pytest.param(family, marks=pytest.mark.slow) for family in OTHERS)]
)
def test_the_graph_in_the_bundle_is_transformers(family: str, tmp_path: Path):
    model = exportable.save(family, tmp_path / "tiny")
    steps: list[str] = []
    done = export_model(tmp_path / "tiny", tmp_path / "out", FAST, on_step=steps.append)
    assert steps == list(export.STEPS)
    bundle = open_bundle(tmp_path / "out")
    verify_hashes(bundle, force=True)
    assert page_error(family, model, bundle) < 1e-5
    assert bundle.manifest.name == "tiny"
    assert bundle.manifest.model.family == family
    assert [(row.component, row.metric, row.ok) for row in bundle.manifest.parity] == [
        ("vision/cpu", "cosine", True),
        ("vision/cpu", "relative_error", True),
    ]
    roles = {artifact.path: artifact.role for artifact in done.artifacts}
    assert roles == {"vision/cpu/model.onnx": "vision.graph", "vision/cpu/references.npz": "vision.references"}
    listed = {artifact.path for artifact in bundle.manifest.artifacts}
    assert {"config.json", "preprocessor_config.json", "tokenizer.json", "generation_config.json"} < listed


def test_stored_rows_check_the_graph_without_torch(llava: Path):
    bundle = open_bundle(llava / "out")
    stored = references.load(bundle.path("vision.references", target="cpu"))
    images = importlib.import_module("vlm_edge.models.llava.images")
    config = json.loads((llava / "out/config.json").read_text())
    settings = images.settings_from(config, exportable.PREPROCESSORS["llava"])
    inputs = example_inputs.tower_inputs(images, settings, ("pixel_values",))
    encoder = OnnxEncoder(bundle.path("vision.graph", target="cpu"), target="cpu", threads=1)
    outputs = [encoder.encode(arrays) for arrays in inputs]
    assert references.check(stored, "vision", "fp32", inputs, outputs).ok
    outputs[3] = outputs[3] + np.float32(1)
    assert not references.check(stored, "vision", "fp32", inputs, outputs).ok


def test_a_second_export_adds_a_target_and_replaces_its_own(copy: Path):
    model = exportable.model_of("llava")
    before = (copy / "out/vision/cpu/model.onnx").read_bytes()
    export_model(copy / "tiny", copy / "out", ExportOptions(target="cuda", dtype="fp16", threads=1))
    bundle = open_bundle(copy / "out")
    graphs = [(a.target, a.dtype) for a in bundle.manifest.artifacts if a.role == "vision.graph"]
    assert graphs == [("cpu", "fp32"), ("cuda", "fp16")]
    assert (copy / "out/vision/cpu/model.onnx").read_bytes() == before
    assert 1e-5 < page_error("llava", model, bundle, "cuda") < 5e-3
    done = export_model(copy / "tiny", copy / "out", ExportOptions(dtype="int8", threads=1))
    assert done.scheme
    bundle = open_bundle(copy / "out")
    verify_hashes(bundle, force=True)
    graphs = [(a.target, a.dtype) for a in bundle.manifest.artifacts if a.role == "vision.graph"]
    assert graphs == [("cpu", "int8"), ("cuda", "fp16")]
    assert 1e-5 < page_error("llava", model, bundle) < 4e-2
    assert [row.component for row in bundle.manifest.parity] == ["vision/cuda"] * 2 + ["vision/cpu"] * 2


def test_weights_beside_the_graph_are_listed_and_go_with_it(copy: Path, monkeypatch: pytest.MonkeyPatch):
    model = exportable.model_of("llava")
    with monkeypatch.context() as patch:
        patch.setattr(onnx_export, "EXTERNAL_BYTES", 1000)
        export_model(copy / "tiny", copy / "out", FAST)
    bundle = open_bundle(copy / "out")
    verify_hashes(bundle, force=True)
    assert bundle.path("vision.graph.data", target="cpu").stat().st_size > 100_000
    assert page_error("llava", model, bundle) < 1e-5
    export_model(copy / "tiny", copy / "out", FAST)
    assert [path.name for path in sorted((copy / "out/vision/cpu").iterdir())] == ["model.onnx", "references.npz"]
    assert page_error("llava", model, open_bundle(copy / "out")) < 1e-5


def test_only_the_towers_and_the_projectors_bytes_are_read(
    llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    names: list[str] = []
    original = weights.read_into
    monkeypatch.setattr(weights, "read_into", lambda tensor, into: (names.append(tensor.name), original(tensor, into)))
    export_model(llava / "tiny", tmp_path / "out", FAST)
    assert names
    assert [name for name in names if "vision_tower" not in name and "multi_modal_projector" not in name] == []


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a refusal would come only after minutes of work."""

    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("the model was traced")

    monkeypatch.setattr("vlm_edge.backends.onnx.export.trace", fail)


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("what", ["another family", "a fine-tune", "nano"])
def test_another_models_bundle_is_refused_and_unchanged(what: str, copy: Path, tmp_path: Path):
    out = copy / "out"
    if what == "nano":
        shutil.copytree(NANO, out, dirs_exist_ok=True)
    exportable.save("paligemma" if what == "another family" else "llava", tmp_path / "other", seed=5)
    before = exportable.everything(out)
    with pytest.raises(BadInput, match="another model"):
        export_model(tmp_path / "other", out, FAST)
    assert exportable.everything(out) == before


def drop_shard(model: Path) -> None:
    shutil.rmtree(model)
    exportable.save("llava", model, max_shard_size="100KB")
    next(model.glob("model-00001-*")).unlink()


def leave_a_pickle(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def drop_the_preprocessor(model: Path) -> None:
    (model / "preprocessor_config.json").unlink()


def change(**fields: Any) -> Any:
    def apply(model: Path) -> None:
        config = json.loads((model / "config.json").read_text()) | fields
        (model / "config.json").write_text(json.dumps(config))

    return apply


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_shard, "lacks 1 shard"),
        (leave_a_pickle, "pickle"),
        (drop_the_preprocessor, "preprocessor_config"),
        (shutil.rmtree, "not a folder"),
        (change(model_type="llave"), "not supported"),
        (change(model_type="mllama"), "planned, not exported"),
        (change(auto_map={"AutoModel": "code.Model"}), "code of its own"),
    ],
    ids=["shard", "pickle", "preprocessor", "missing", "type", "mllama", "code"],
)
def test_a_bad_checkpoint_is_refused_and_nothing_is_written(damage: Any, message: str, copy: Path):
    damage(copy / "tiny")
    before = exportable.everything(copy / "out")
    for out in (copy / "new", copy / "out"):
        with pytest.raises(BadInput, match=message):
            export_model(copy / "tiny", out, FAST)
    assert not (copy / "new").exists()
    assert exportable.everything(copy / "out") == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ExportOptions(components=("audio",)), "--component audio"),
        (ExportOptions(components=()), "--component"),
        (ExportOptions(components=("vision", "llm")), "one graph"),
        (ExportOptions(components=("vision",)), "one graph"),
        (ExportOptions(target="npu"), "npu"),
        (ExportOptions(dtype="fp8"), "fp8"),
        (ExportOptions(target="cuda", dtype="int8"), "8-bit"),
        (ExportOptions(opset=17), "--opset 17"),
        (ExportOptions(atol=0.0), "--atol 0"),
        (ExportOptions(atol=float("nan")), "--atol nan"),
        (ExportOptions(backend="openvino"), "no backend 'openvino'"),
        (ExportOptions(backend="tensorrt"), "not built for cpu"),
        (ExportOptions(target="cuda", emit_script=True), "not built for cuda"),
        (ExportOptions(revision="main"), "--revision is for models of the hub"),
    ],
)
def test_what_cannot_be_exported_is_refused(options: ExportOptions, message: str, llava: Path, tmp_path: Path):
    with pytest.raises(BadInput, match=message):
        export_model(llava / "tiny", tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_the_checkpoint_itself_is_no_bundle(llava: Path):
    with pytest.raises(BadInput, match="the checkpoint itself"):
        export_model(llava / "tiny", llava / "tiny" / ".", FAST)


def test_a_missing_extra_is_named(llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    find = tools.importlib.util.find_spec
    monkeypatch.setattr(tools.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(MissingDependency, match="onnxscript") as caught:
        export_model(llava / "tiny", tmp_path / "out")
    assert "vlm-edge[cpu,build]" in caught.value.remedy


def test_a_graph_that_differs_is_not_entered(copy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(parity.LIMITS, "fp32", parity.Limit(cosine=0.9, relative_error=1e-12))
    before = exportable.everything(copy / "out")
    for out in (copy / "new", copy / "out"):
        with pytest.raises(CheckFailed, match="differs from torch"):
            export_model(copy / "tiny", out, FAST)
    assert not (copy / "new").exists()
    assert exportable.everything(copy / "out") == before


def test_settings_inside_processor_config_do_as_well(copy: Path, tmp_path: Path):
    inner = json.loads((copy / "tiny/preprocessor_config.json").read_text())
    (copy / "tiny/preprocessor_config.json").unlink()
    (copy / "tiny/processor_config.json").write_text(json.dumps({"image_processor": inner, "processor_class": "X"}))
    bundle = export_model(copy / "tiny", tmp_path / "new", FAST).bundle
    images, settings = source.bundle_images(bundle)
    assert settings == images.settings_from(json.loads((copy / "tiny/config.json").read_text()), inner)


@pytest.mark.parametrize("atol", [1e-9, 10.0])
def test_a_largest_difference_is_a_limit_beside_the_others(atol: float, llava: Path, tmp_path: Path):
    out, options = tmp_path / "out", replace(FAST, atol=atol)
    if atol < 1:
        with pytest.raises(CheckFailed, match=r"largest difference .* \(at most 1e-09\)") as caught:
            export_model(llava / "tiny", out, options)
        assert "--atol" in caught.value.remedy
        assert not out.exists()
        return
    kept = export_model(llava / "tiny", out, options).bundle.manifest.parity
    assert [(row.metric, row.limit) for row in kept][2:] == [("max_error", atol)]
    assert 0 < kept[2].value < 1e-3
    assert kept[1].limit == parity.LIMITS["fp32"].relative_error


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_a_bundle_without_a_decoder_does_not_run(device: str, llava: Path):
    with pytest.raises(DamagedBundle, match="no decoder") as caught:
        Pipeline.load(llava / "out", device=device)
    assert "--component llm" in caught.value.remedy


def test_a_new_bundle_is_cut_and_limited_by_its_own_preprocessor(tmp_path: Path):
    with runnable.without_graph():
        exportable.save("internvl", tmp_path / "tiny")
        export_model(tmp_path / "tiny", tmp_path / "out", FAST)
    manifest = open_bundle(tmp_path / "out").manifest
    assert manifest.model.geometry == TileGeometry(28, (2, 2), min_tiles=1, max_tiles=4)
    assert (manifest.limits.max_tiles, manifest.limits.max_images > 1, manifest.defaults.tiling) == (4, True, "grid")


def test_what_newer_checkpoints_keep_inside_other_files_is_taken_out(tmp_path: Path):
    tiny, out = tmp_path / "tiny", tmp_path / "out"
    exportable.save("paligemma", tiny)
    (tiny / "preprocessor_config.json").unlink()
    inner = exportable.PREPROCESSORS["paligemma"]
    (tiny / "processor_config.json").write_text(json.dumps({"image_processor": inner, "processor_class": "any"}))
    (tiny / "chat_template.json").write_text(json.dumps({"chat_template": "{{ 'x' }}\n"}))
    with runnable.without_graph():
        export_model(tiny, out, FAST)
    bundle = open_bundle(out)
    assert json.loads(bundle.path("preprocessor_config").read_text()) == inner
    assert bundle.path("chat_template").read_text() == "{{ 'x' }}\n"

"""MODEL of `plan`: bundles, checkpoints with and without weights, lone configs, recipes."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlm_edge.core import discover
from vlm_edge.core.bundle import Limits, Manifest, RunDefaults, open_bundle, reference, write_manifest
from vlm_edge.core.recipe import load_recipe
from vlm_edge.core.resources import resource_dir
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.embedded import NANO
from vlm_edge.pipeline.planning.inputs import find_model

CHECKPOINT = Path(__file__).parents[3] / "recipes/nano/checkpoint"


def published(name: str) -> Any:
    model = load_recipe(resource_dir("recipes") / f"{name}.yaml").model
    assert model is not None
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint folder without weights."""
    root = tmp_path / "llava"
    root.mkdir()
    (root / "config.json").write_text(json.dumps(published("llava-1.5-7b").config), "utf-8")
    return root


def test_the_embedded_bundle_counts_by_its_files() -> None:
    found = find_model("nano")
    sizes = {a.path: a.bytes for a in open_bundle(NANO).manifest.artifacts}
    assert found.source == "bundle"
    assert found.subject.stored["llm.weights"] == sum(s for p, s in sizes.items() if p.startswith("llm/cpu/"))
    assert found.subject.stored["vision.weights"] == sizes["vision/cpu/model.onnx"]
    assert found.subject.stored["llm.embedding"] == sizes["llm/embed.safetensors"]
    assert (found.tiles, found.max_model_len, found.target) == (6, 768, "cpu")


def test_a_bundle_is_bound_to_its_targets(tmp_path: Path) -> None:
    copy = shutil.copytree(NANO, tmp_path / "copy")
    assert find_model(str(copy)).subject == find_model("nano").subject
    with pytest.raises(BadInput, match="nothing for cuda"):
        find_model("nano", target="cuda")


@pytest.mark.skipif(not CHECKPOINT.is_dir(), reason="an installed wheel has no checkpoint")
def test_a_checkpoint_agrees_with_the_recipe_that_packs_it() -> None:
    found = find_model(str(CHECKPOINT), recipe=str(resource_dir("recipes") / "nano.yaml"))
    assert (found.source, found.tiles, found.max_model_len) == ("checkpoint", 6, 768)
    assert found.subject.text == find_model("nano").subject.text
    assert found.subject.stored == {}


def test_a_recipe_packs_whatever_it_is_given_with_or_is_refused(folder: Path, tmp_path: Path) -> None:
    own = resource_dir("recipes") / "llava-1.5-7b.yaml"
    mine = tmp_path / "mine.yaml"
    told = own.read_text("utf-8").replace("name: llava-1.5-7b", "name: mine", 1)
    mine.write_text(re.sub(r"max_model_len: \d+", "max_model_len: 2345", told), "utf-8")
    for model in (str(folder), "llava-1.5-7b"):
        assert find_model(model, recipe=str(mine)).max_model_len == 2345
        assert find_model(model, recipe="llava-1.5-7b").max_model_len == load_recipe(own).limits.max_model_len
        with pytest.raises(BadInput, match="nowhere"):
            find_model(model, recipe=str(tmp_path / "nowhere.yaml"))
        with pytest.raises(BadInput, match=r"internvl3-8b is for internvl, and .* is of the family llava"):
            find_model(model, recipe="internvl3-8b")
    with pytest.raises(BadInput, match="is a bundle"):
        find_model("nano", recipe=str(mine))


def test_a_folder_without_weights_and_its_config_alone_are_the_same(folder: Path) -> None:
    by_folder, by_file = find_model(str(folder)), find_model(str(folder / "config.json"))
    assert by_folder == by_file
    assert by_folder.subject.text == find_model("llava-1.5-7b").subject.text
    assert "preprocessor_config.json" in by_file.notes[0]


def test_what_lies_beside_a_config_is_read(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(published("llava-1.5-7b").preprocessor), "utf-8")
    assert find_model(str(folder)).notes == ()
    (folder / "preprocessor_config.json").write_text('{"size": {"height": 224, "width": 224}, "do_center_crop": false}')
    with pytest.raises(BadInput, match="views of 224 px"):
        find_model(str(folder))


def test_newer_checkpoints_keep_it_in_processor_config(folder: Path) -> None:
    told = json.dumps({"processor_class": "LlavaProcessor", "image_processor": {"size": {"height": 224, "width": 224}}})
    (folder / "processor_config.json").write_text(told, "utf-8")
    with pytest.raises(BadInput, match="views of 224 px"):
        find_model(str(folder))
    # the file of its own goes before it, as it does for transformers
    (folder / "preprocessor_config.json").write_text(json.dumps(published("llava-1.5-7b").preprocessor), "utf-8")
    assert find_model(str(folder)).notes == ()


@pytest.mark.parametrize("told", ["{}", '{"image_processor": 5}'])
def test_a_processor_config_without_an_image_processor_says_nothing(folder: Path, told: str) -> None:
    (folder / "processor_config.json").write_text(told, "utf-8")
    assert "images are cut as" in find_model(str(folder)).notes[0]


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("llava-1.5", "llava-1.5-7b"),
        ("qwen2.5-vl", "qwen2.5-vl"),
        ("LLaVA-1.5-7B", "llava-1.5-7b"),
        ("zzz", "there are"),
        ("", "there are"),
        ("org/model", "there are"),
    ],
)
def test_unknown_recipes_bring_the_nearest(
    name: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as caught:
        find_model(name or "?")
    assert named in caught.value.remedy


def test_files_that_are_not_there_or_no_config(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        find_model(str(tmp_path / "config.json"))
    with pytest.raises(BadInput, match="does not exist"):
        find_model(str(tmp_path))
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(BadInput, match="no JSON object"):
        find_model(str(tmp_path / "list.json"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(BadInput, match="not valid JSON"):
        find_model(str(tmp_path / "broken.json"))


def test_a_bundle_of_a_tower_alone_is_cut_by_the_familys_rules(tmp_path: Path) -> None:
    """Its manifest knows one nominal view; the files beside it know how images are cut. The decoder is computed."""
    model = published("internvl3-2b")
    root = tmp_path / "internvl"
    (root / "vision/cpu").mkdir(parents=True)
    (root / "vision/cpu/model.onnx").write_bytes(b"x" * 1000)
    (root / "config.json").write_text(json.dumps(model.config), "utf-8")
    (root / "preprocessor_config.json").write_text(json.dumps(model.preprocessor), "utf-8")
    manifest = Manifest(
        schema_version=1, name="internvl", source={}, tools={}, model=discover.family("internvl").spec(model.config),
        limits=Limits(max_tiles=0, max_model_len=4096), defaults=RunDefaults(tiling="none"),
        artifacts=(reference(root, "vision/cpu/model.onnx", role="vision.graph", target="cpu"),),
    )  # fmt: skip
    write_manifest(root, manifest)
    found = find_model(str(root))
    assert found.subject.geometry == find_model("internvl3-2b").subject.geometry
    assert (found.tiles, found.most_tiles) == (None, None)
    told = replace(manifest, model=replace(manifest.model, geometry=found.subject.geometry))
    for tiling, tiles in (("grid", None), ("none", 0)):
        write_manifest(root, replace(told, defaults=RunDefaults(tiling=tiling)))
        assert find_model(str(root)).tiles == tiles
    assert dict(found.subject.stored) == {"vision.weights": 1000, "projector.weights": 0}
    assert "no decoder yet" in found.notes[0]

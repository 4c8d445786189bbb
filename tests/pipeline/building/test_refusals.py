"""What `build` refuses, and that it has read no weight and written nothing by then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tests import buildable
from vlm_edge.core.bundle import hash_file
from vlm_edge.errors import BadInput, DamagedBundle, DoesNotFit, VlmEdgeError
from vlm_edge.pipeline.building import preflight, steps
from vlm_edge.pipeline.building.build import build_model
from vlm_edge.units import MIB


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(checkpoint, calibration data)"""
    return buildable.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever begins a step fails."""
    for name in ("export_model", "quantize_model", "verify_bundle"):
        monkeypatch.setattr(steps, name, None)


@pytest.mark.parametrize(
    ("parts", "options", "message", "remedy"),
    [
        ({}, {"target": "tpu"}, "--target tpu is not supported", "use one of cpu, cuda"),
        ({}, {"method": "gptq"}, "--method gptq is not supported", "use one of awq, rtn"),
        ({}, {"samples": 1}, "--samples 1 is too small", "use 2 or more"),
        ({}, {"seqlen": 4096}, "--seqlen 4096 is longer than the model's context of 128 tokens", "use 128 or less"),
        ({}, {"device": "rtx-4060"}, "rtx-4060 runs what is built for cuda", "add --target cuda"),
        ({}, {"device": "rtx-406"}, "there is no device", "did you mean rtx-4060"),
        ({}, {"budget": "much"}, "'much' is not an amount of memory", "write it like"),
        ({}, {"image_size": "big"}, "--image-size 'big' is no size", "write it like 1920x1080"),
        ({}, {"calib": Path("nowhere.jsonl")}, "nowhere.jsonl cannot be read", "name a JSON Lines file"),
        ({}, {"revision": "main"}, "--revision is for models of the hub", "leave it out"),
        (
            {"family": "internvl", "defaults": {"tiling": "grid", "reduce": "none"}},
            {},
            "the recipe tiny is for internvl, and .* is of the family llava",
            "name a recipe",
        ),
        ({"family": "lava"}, {}, "lava", "llava"),
        ({"packing": {"llm": "int8"}}, {}, "no int8 decoder can be built", "packing.llm: int4"),
        ({"packing": {"llm": "int5"}}, {}, "packing.llm has no value 'int5'", "int"),
        ({"packing": {"group_size": 128}}, {}, "groups of 128 weights do not divide a layer", "32"),
        ({"packing": {"group_size": 48}}, {}, "48", "32"),
        ({"packing": {"lm_head": "int2"}}, {}, "packing.lm_head has no value 'int2'", "int"),
        ({"packing": {"llm": "fp32", "kv_cache": "int8"}}, {}, "packing.kv_cache is for decoders in int4", "leave it"),
        ({"packing": {"vision": "int8"}}, {"target": "cuda"}, "8-bit towers are for the CPU", "packing.vision: fp16"),
        ({"packing": {"llm": "fp32"}}, {"target": "cuda"}, "attention on CUDA is written for fp16", "fp16"),
        ({"limits": {"max_model_len": 129}}, {}, "max_model_len is 129; the decoder has 128 positions", "128 or less"),
        ({"view_tokens": ["<global>"]}, {}, "the tokenizer has no token '<global>'", "view_tokens"),
        ({"defaults": {"saliency": "cnn"}}, {}, "no network for --saliency cnn", "detail"),
        ({"limits": {"max_model_len": 0}}, {}, "limits.max_model_len is 0", "correct the field"),
        ({"defaults": {"reduce": "shrink"}}, {}, "defaults.reduce is 'shrink'", "correct the field"),
    ],
)
def test_bad_input(
    parts: dict[str, Any], options: dict[str, Any], message: str, remedy: str, model: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = buildable.recipe(tmp_path, **parts)
    with pytest.raises(BadInput, match=message) as found:
        build_model(model[0], tmp_path / "out", recipe, buildable.options(model[1], **options))
    assert remedy in found.value.remedy
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["rtn", "awq"])
def test_a_step_that_does_not_fit_is_refused(method: str, model: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = buildable.recipe(tmp_path)

    def build(limit_bytes: int) -> None:
        options = buildable.options(model[1], method=method, max_memory_bytes=limit_bytes)
        build_model(model[0], tmp_path / "out", recipe, options)

    with pytest.raises(
        DoesNotFit, match=r"export needs [\d.]+ MiB of this machine's memory; 300 MiB are allowed"
    ) as found:
        build(300 * MIB)
    assert found.value.exit_code == 1
    # what the remedy says is enough, and a MiB less is not
    enough = int(found.value.remedy.split("MiB")[0].split()[-1]) * MIB
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):  # it begins
        build(enough)
    with pytest.raises(DoesNotFit):
        build(enough - MIB)


def test_what_is_free_is_the_limit_where_none_is_named(
    model: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight.host, "available_bytes", lambda: preflight.host.CPU_RESERVE_BYTES)
    monkeypatch.setattr(preflight.host, "kept_bytes", lambda: 100 * MIB)
    with pytest.raises(DoesNotFit, match="; 100 MiB are allowed"):
        build_model(model[0], tmp_path / "out", buildable.recipe(tmp_path), buildable.options(model[1]))


def test_a_bundle_too_large_for_its_device_is_not_begun(model: tuple[Path, Path], tmp_path: Path) -> None:
    options = buildable.options(model[1], budget="50MiB")
    with pytest.raises(DoesNotFit, match=r"the bundle would not fit the budget: \w+ needs .* of 50.0 MiB"):
        build_model(model[0], tmp_path / "out", buildable.recipe(tmp_path), options)
    assert not (tmp_path / "out").exists()


def test_somebody_elses_folder_is_left_alone(model: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInput, match=r"holds files that are no bundle's, such as thesis\.tex"):
        build_model(model[0], out, buildable.recipe(tmp_path), buildable.options(model[1], force=True))
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_force_does_not_clear_a_damaged_bundle_that_build_did_not_make(
    model: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text("{}")
    with pytest.raises(DamagedBundle):
        build_model(model[0], out, buildable.recipe(tmp_path), buildable.options(model[1], force=True))
    assert (out / "manifest.json").read_text() == "{}"


def test_the_checkpoint_is_not_changed(model: tuple[Path, Path], tmp_path: Path) -> None:
    before = {path.name: hash_file(path) for path in model[0].iterdir()}
    with pytest.raises(VlmEdgeError, match="is the checkpoint itself"):
        build_model(model[0], model[0], buildable.recipe(tmp_path), buildable.options(model[1]))
    assert {path.name: hash_file(path) for path in model[0].iterdir()} == before

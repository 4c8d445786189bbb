"""`build` from a tiny checkpoint to a bundle that answers; what is done twice, what is not, and what goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime_genai")

from tests import buildable, exportable
from vlm_edge import AskOptions, Pipeline
from vlm_edge.core.bundle import open_bundle
from vlm_edge.core.load import to_plain
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.building import steps
from vlm_edge.pipeline.building.build import BuildProgress, Built, build_model
from vlm_edge.pipeline.checking.verify import verify_bundle
from vlm_edge.pipeline.exporting.export import ExportOptions, export_model
from vlm_edge.pipeline.quantizing.quantize import QuantizeOptions, quantize_model

STEPS = ["plan", "export", "quantize", "verify", "measure"]


@pytest.fixture(scope="module", autouse=True)
def _quickly() -> Iterator[None]:
    with buildable.quickly():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(checkpoint, calibration data)"""
    return buildable.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def first(model: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, list[BuildProgress]]:
    """A bundle as built by AWQ, and all that was told meanwhile."""
    folder, told = tmp_path_factory.mktemp("first"), []
    recipe = buildable.recipe(folder)
    return build_model(model[0], folder / "out", recipe, buildable.options(model[1]), on_progress=told.append), told


@pytest.fixture
def copy(first: tuple[Built, list[BuildProgress]], tmp_path: Path) -> Path:
    """The same bundle, to be changed; times are kept."""
    return Path(shutil.copytree(first[0].bundle.root, tmp_path / "out", copy_function=shutil.copy2))


def done(built: Built) -> list[str]:
    return [step.name for step in built.steps if not step.skipped]


def test_it_writes_what_export_and_quantize_write(
    first: tuple[Built, list[BuildProgress]], model: tuple[Path, Path], tmp_path: Path
) -> None:
    export_model(model[0], tmp_path, ExportOptions())
    quantize_model(
        model[0], tmp_path, QuantizeOptions(target="cpu", group_size=32, calib=model[1], samples=4, seqlen=48)
    )
    expected = {a.path: a.sha256 for a in open_bundle(tmp_path).manifest.artifacts}
    found = {a.path: a.sha256 for a in first[0].bundle.manifest.artifacts}
    reports = {"reports/quantize.json", "reports/quantize.html"}
    assert {path: found[path] for path in found.keys() - reports} == {
        path: expected[path] for path in expected.keys() - reports
    }


def test_the_bundle_is_what_the_recipe_says_and_answers(first: tuple[Built, list[BuildProgress]]) -> None:
    built, _ = first
    manifest = open_bundle(built.bundle.root).manifest
    assert (manifest.limits, manifest.defaults) == (built.recipe.limits, built.recipe.defaults)
    assert manifest.recipe == to_plain(built.recipe)
    assert verify_bundle(built.bundle.root, threads=1).ok
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    answer = Pipeline.load(built.bundle.root, device="cpu").ask(image, "what is it?", AskOptions())
    assert 1 <= answer.tokens.generated <= built.recipe.defaults.max_new_tokens
    assert len(answer.tiles) <= 1


def test_every_step_is_planned_measured_and_told(first: tuple[Built, list[BuildProgress]]) -> None:
    built, told = first
    assert [step.name for step in built.steps] == done(built) == STEPS
    for step in built.steps[1:]:
        assert step.record.planned_peak_bytes is not None
        assert 0 < step.record.kept_peak_bytes <= step.record.measured_peak_bytes
    details = {step.name: step.record.details for step in built.steps}
    assert details["quantize"]["held_out"]["kl"] <= details["quantize"]["held_out"]["plain_kl"]
    assert details["verify"]["ok"]
    assert set(details["measure"]["run"]["phases"]) == {"load", "preprocess", "encode", "prefill", "decode"}
    plan = json.loads((built.bundle.root / "reports/plan.json").read_text())
    assert plan["measured"] == details["measure"]["run"]["phases"]
    assert json.loads((built.bundle.root / "reports/verify.json").read_text())["ok"]
    order = list(dict.fromkeys(each.step for each in told if each.text))
    assert order == STEPS
    assert {(each.number, each.steps) for each in told if each.step == "quantize"} == {(3, 5)}
    assert any(each.left_s is not None for each in told if each.step == "quantize")


def test_a_second_run_does_nothing(
    copy: Path, model: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = buildable.files(copy)
    for name in ("export_model", "quantize_model", "verify_bundle", "measure", "write_manifest"):
        monkeypatch.setattr(steps, name, None)  # whoever calls it fails
    # one byte is enough for a run that has nothing to do
    options = buildable.options(model[1], max_memory_bytes=1)
    again = build_model(model[0], copy, buildable.recipe(tmp_path), options)
    assert done(again) == ["plan"]
    assert buildable.files(copy) == before


@pytest.mark.parametrize(
    ("parts", "options", "again"),
    [
        ({"limits": {"max_model_len": 64}}, {}, ["plan", "verify", "measure"]),
        ({"defaults": {"reduce": "none"}}, {}, ["plan", "verify", "measure"]),
        ({"packing": {"vision": "fp16"}}, {}, ["plan", "export", "verify", "measure"]),
        ({}, {"method": "rtn"}, ["plan", "quantize", "verify", "measure"]),
        ({}, {"samples": 3}, ["plan", "quantize", "verify", "measure"]),
        ({}, {"image_size": "30x30"}, ["plan", "measure"]),
        ({}, {"image_size": "30x30", "measure": False}, ["plan"]),
        ({}, {"bars": False, "max_memory_bytes": 20 << 30, "budget": "20GiB"}, ["plan"]),
    ],
)
def test_only_what_depends_on_a_change_is_done_again(
    parts: dict, options: dict, again: list[str], copy: Path, model: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = buildable.recipe(tmp_path, **parts)
    built = build_model(model[0], copy, recipe, buildable.options(model[1], **options))
    assert done(built) == again
    assert built.bundle.manifest.limits == recipe.limits
    assert verify_bundle(copy, threads=1).ok


def test_a_fine_tune_is_another_model(copy: Path, model: tuple[Path, Path], tmp_path: Path) -> None:
    """Names and shapes agree, one weight does not; the bundle stays what it was."""
    before = {path: content for path, (content, _) in buildable.files(copy).items()}
    tuned = Path(shutil.copytree(model[0], tmp_path / "tiny-llava"))
    weights = tuned / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BadInput, match="holds another model"):
        build_model(tuned, copy, buildable.recipe(tmp_path), buildable.options(model[1], method="rtn"))
    assert {path: content for path, (content, _) in buildable.files(copy).items()} == before


def test_a_damaged_file_is_written_again(copy: Path, model: tuple[Path, Path], tmp_path: Path) -> None:
    graph = copy / "vision/cpu/model.onnx"
    content = graph.read_bytes()
    graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    built = build_model(model[0], copy, buildable.recipe(tmp_path), buildable.options(model[1]))
    assert done(built) == ["plan", "export", "verify", "measure"]
    assert graph.read_bytes() == content


def test_a_bundle_that_does_not_open_is_begun_anew_by_force(
    copy: Path, model: tuple[Path, Path], tmp_path: Path
) -> None:
    (copy / "llm/cpu/model.onnx.data").unlink()
    recipe, options = buildable.recipe(tmp_path), buildable.options(model[1])
    with pytest.raises(Exception, match="is missing from bundle") as found:
        build_model(model[0], copy, recipe, options)
    assert found.value.remedy == "build it again with --force"
    built = build_model(model[0], copy, recipe, replace(options, force=True))
    assert done(built) == STEPS
    assert verify_bundle(copy, threads=1).ok


def test_a_recipe_with_a_cache_of_int8_has_its_scales_found(tmp_path: Path) -> None:
    model = buildable.save(tmp_path, outliers=False)
    recipe = buildable.recipe(tmp_path, packing={"kv_cache": "int8", "lm_head": "int8"})
    built = build_model(model[0], tmp_path / "out", recipe, buildable.options(model[1], method="rtn"))
    assert built.bundle.manifest.kv_cache("cpu") == "int8"
    (quantize,) = (step.record.details for step in built.steps if step.name == "quantize")
    assert quantize["onnx"]["lm_head"] == "int8"
    assert quantize["onnx"]["kv_cache"]["cosine"] > 0.9
    assert built.report.request.kv_cache == "int8"


def test_a_float_decoder_is_exported_and_nothing_is_quantized(model: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = buildable.recipe(tmp_path, packing={"llm": "fp32", "vision": "int8", "group_size": 128})
    built = build_model(model[0], tmp_path / "out", recipe, buildable.options(model[1], measure=False))
    assert done(built) == ["plan", "export", "verify"]
    dtypes = {a.role: a.dtype for a in built.bundle.manifest.artifacts if a.role.endswith(".graph")}
    assert dtypes == {"vision.graph": "int8", "llm.graph": "fp32"}
    again = build_model(model[0], tmp_path / "out", recipe, buildable.options(model[1], measure=False))
    assert done(again) == ["plan"]


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests import buildable
from vlm_edge.pipeline.building.build import build_model
model, data, out, recipes = map(Path, sys.argv[1:5])
recipe, options = buildable.recipe(recipes), buildable.options(data, measure=False)
moments = random.Random(0)

with buildable.quickly():
    build_model(model, out.with_name("whole"), recipe, options)  # now everything is imported and traced
    started = time.monotonic()
    build_model(model, out.with_name("again"), recipe, options)
    whole = time.monotonic() - started

    def run(seconds):
        child = os.fork()
        if not child:
            code = 1
            try:
                build_model(model, out, recipe, options)
                code = 0
            finally:
                os._exit(code)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1]

    ended = [run(moments.uniform(0.1, 0.9) * whole) for _ in range(int(sys.argv[5]))]
    assert set(ended) <= {0, signal.SIGKILL}, ended
    assert signal.SIGKILL in ended
    assert run(None) == 0
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_killed_again_and_again_it_goes_on_to_the_same_bundle(model: tuple[Path, Path], tmp_path: Path) -> None:
    paths = [*model, tmp_path / "out", tmp_path]
    kills = os.environ.get("VLM_EDGE_TEST_KILLS", "4")
    command = [sys.executable, "-c", KILLED, *map(str, paths), kills]
    ended = subprocess.run(
        command, cwd=Path(exportable.__file__).parents[1], check=False, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    one, other = (
        {a.path: a.sha256 for a in open_bundle(tmp_path / name).manifest.artifacts if not a.role.startswith("report.")}
        for name in ("out", "whole")
    )
    assert one == other
    assert verify_bundle(tmp_path / "out", threads=1).ok
    assert not list((tmp_path / "out").glob(".export-*"))

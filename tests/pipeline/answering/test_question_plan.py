"""What a run plans with: the files of its own target, and no others."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.models.pictures import photo
from vlm_edge.backends.onnx import session
from vlm_edge.cli.main import execute
from vlm_edge.core import host
from vlm_edge.core.bundle import Bundle, open_bundle, reference, write_manifest
from vlm_edge.core.resources import resource_dir
from vlm_edge.errors import DoesNotFit
from vlm_edge.memory.plan import Plan
from vlm_edge.pipeline.answering.options import AskOptions
from vlm_edge.pipeline.answering.preflight import preflight
from vlm_edge.pipeline.answering.question_plan import check_fits, plan, source_header
from vlm_edge.pipeline.batch_inference.batch import Answerer, Loading
from vlm_edge.pipeline.batch_inference.input import Row
from vlm_edge.pipeline.embedded import NANO
from vlm_edge.pipeline.measuring import bench
from vlm_edge.pipeline.planning.inputs import find_model
from vlm_edge.units import MIB

EXTRA = {
    "vision/cuda/model.onnx": ("vision.graph", "cuda", 70_000),
    "llm/cuda/model.onnx": ("llm.graph", "cuda", 110_000),
    "vision/tensorrt/model.onnx": ("vision.graph", "tensorrt", 130_000),
}
"""Files that a run on the CPU does not open: role, target and size."""
PAGE = resource_dir("calibration") / "pages/receipt.png"


@pytest.fixture
def both(tmp_path: Path) -> Bundle:
    """The embedded bundle with files for other targets."""
    root = Path(shutil.copytree(NANO, tmp_path / "both"))
    manifest, added = open_bundle(root).manifest, []
    for name, (role, target, size) in EXTRA.items():
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(b"x" * size)
        added.append(reference(root, name, role=role, target=target))
    write_manifest(root, replace(manifest, artifacts=(*manifest.artifacts, *added)))
    return open_bundle(root)


def planned(bundle: Bundle, device: str) -> Plan:
    header = source_header(photo(640, 480), 1 << 20)
    return plan(bundle, AskOptions(), images=(header,), budget_bytes=1 << 40, device=device)


def weights(found: Plan) -> dict[str, int]:
    return {item.name: item.bytes for item in found.items if item.name in ("vision.weights", "llm.weights")}


def test_files_for_other_targets_cost_nothing(both: Bundle) -> None:
    assert planned(both, "cpu") == planned(open_bundle(NANO), "cpu")


def test_a_run_counts_what_plan_counts(both: Bundle) -> None:
    for target in ("cpu", "cuda"):
        stored = find_model(str(both.root), target=target).subject.stored
        assert weights(planned(both, target)) == {name: stored[name] for name in ("vision.weights", "llm.weights")}


def test_tensorrt_has_its_own_tower_and_the_decoder_of_cuda(both: Bundle) -> None:
    assert weights(planned(both, "tensorrt")) == {"vision.weights": 130_000, "llm.weights": 110_000}


@pytest.fixture
def cuda_is_larger(both: Bundle, monkeypatch: pytest.MonkeyPatch) -> tuple[Bundle, int]:
    """A bundle whose decoder for CUDA is far larger, on a machine that has both; and what a further question takes on the CPU."""
    weights = both.root / "llm/cuda/model.onnx.data"
    weights.write_bytes(bytes(32 * MIB))
    added = reference(both.root, "llm/cuda/model.onnx.data", role="llm.graph.data", target="cuda")
    bundle = write_manifest(both.root, replace(both.manifest, artifacts=(*both.manifest.artifacts, added)))
    monkeypatch.setattr(session, "available_targets", lambda: ("cpu", "cuda"))
    return bundle, preflight(bundle, [PAGE], AskOptions(), "1GiB", device="cpu", again=True).plan.peak_bytes


def test_a_batch_plans_for_the_device_that_it_runs_on(cuda_is_larger: tuple[Bundle, int]) -> None:
    bundle, budget = cuda_is_larger
    answerer = Answerer(Loading(str(bundle.root), "cpu", 1, budget, verify=False), AskOptions(max_new_tokens=1), ".")
    row = answerer.answer(Row(1, "a", "a", (str(PAGE),), "what is the total?"))
    assert not {"error", "lowered"} & row.keys()


def test_a_row_with_fewer_tiles_says_how_many_as_run_does() -> None:
    options = AskOptions(max_new_tokens=1)
    three = preflight(
        open_bundle(NANO), [PAGE], replace(options, max_tiles=3), "1GiB", device="cpu", again=True
    ).plan.peak_bytes
    row = Answerer(Loading(None, "cpu", 1, three, verify=False), options, ".").answer(
        Row(1, "a", "a", (str(PAGE),), "what is the total?")
    )
    assert row["lowered"] == {"asked_tiles": 6, "max_tiles": 3}
    assert len(row["tiles"]) == 3


def test_a_bench_plans_for_the_device_that_it_runs_on(
    cuda_is_larger: tuple[Bundle, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, budget = cuda_is_larger
    monkeypatch.setattr(bench, "bench", lambda *_args, **_named: pytest.fail("measured"))
    with pytest.raises(pytest.fail.Exception, match="measured"):
        execute(["bench", str(bundle.root), "--image", str(PAGE), "--device", "cpu", "--budget", f"{budget}B"])
    assert "do not fit" not in capsys.readouterr().err


def test_without_a_budget_a_full_machine_has_nothing_and_not_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message tells what is allowed: 0 B, where less is free than the reserve."""
    monkeypatch.setattr(host, "available_bytes", lambda: 100 * MIB)
    found = plan(open_bundle(NANO), AskOptions(), images=(), budget_bytes=None)
    assert found.budget_bytes == 0
    with pytest.raises(DoesNotFit, match="; 0 B are allowed"):
        check_fits(found)


def test_before_a_run_the_device_that_it_will_take_is_planned(both: Bundle) -> None:
    """There is no CUDA for these tests, so `auto` is the CPU."""
    fitted = preflight(both, [photo(640, 480)], AskOptions(), "1GiB")
    assert fitted.plan.items == planned(both, "cpu").items
    fitted = preflight(both, [photo(640, 480)], AskOptions(), "1GiB", device="cuda")
    assert fitted.plan.items == planned(both, "cuda").items

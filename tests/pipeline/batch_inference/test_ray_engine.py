"""Batches on Ray: two workers on this machine answer what one pipeline does, and one that dies costs its own rows alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.batch_inference.test_batch import NANO, outcome, rows_file, run
from vlm_edge import AskOptions
from vlm_edge.errors import BadInput, CheckFailed
from vlm_edge.pipeline.batch_inference import ray_engine
from vlm_edge.pipeline.batch_inference.batch import Answerer, Loading, LocalEngine
from vlm_edge.pipeline.batch_inference.input import BatchInput, Row
from vlm_edge.pipeline.batch_inference.ray_engine import QUEUED, RayEngine, check_ray

ROWS = 12


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ray itself; its workers import the package from here."""
    found = pytest.importorskip("ray", reason="needs Ray: pip install 'vlm-edge[ray]'")
    monkeypatch.delenv(ray_engine.ADDRESS, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[3]))
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    yield found
    found.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own
def test_two_workers_answer_what_one_pipeline_does(ray: Any, tmp_path: Path) -> None:  # noqa: ARG001
    source = BatchInput(rows_file(tmp_path, ROWS, bad=(4,)))
    there, here = tmp_path / "there.jsonl", tmp_path / "here.jsonl"
    summary = run(source, there, RayEngine(NANO, AskOptions(), str(source.root), workers=2))
    run(source, here, LocalEngine(Answerer(NANO, AskOptions(), str(source.root))))
    assert (summary.answered, summary.failed) == (ROWS - 1, 1)
    told = [
        {line["row"]: (line["id"], line["key"], line.get("answer")) for line in outcome(out)} for out in (there, here)
    ]
    assert len(outcome(there)) == ROWS
    assert told[0] == told[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_worker_that_dies_costs_its_rows_alone(ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    class Fragile(ray_engine._Worker):
        def answer(self, row: Row) -> dict[str, Any]:
            if row.number == 3:
                os._exit(1)
            return super().answer(row)

    monkeypatch.setattr(ray_engine, "_Worker", Fragile)
    source, out = BatchInput(rows_file(tmp_path, ROWS)), tmp_path / "out.jsonl"
    summary = run(source, out, RayEngine(NANO, AskOptions(), str(source.root), workers=2))
    lost = [line["row"] for line in outcome(out) if "error" in line]
    assert 3 in lost
    assert len(lost) <= QUEUED
    assert sorted(line["row"] for line in outcome(out)) == [*range(1, ROWS + 1)]
    assert summary.failed == len(lost)
    again = run(source, out, LocalEngine(Answerer(NANO, AskOptions(), str(source.root))), retry_failed=True)
    assert (again.answered, again.failed) == (ROWS, 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_bundle_that_no_worker_can_open_ends_the_batch(ray: Any, tmp_path: Path) -> None:  # noqa: ARG001
    source, out = BatchInput(rows_file(tmp_path, 2)), tmp_path / "out.jsonl"
    loading = Loading(str(tmp_path / "nowhere"), "cpu", 1, None, verify=False)
    with pytest.raises(CheckFailed, match="nowhere is not a folder"):
        run(source, out, RayEngine(loading, AskOptions(), str(source.root), workers=1))
    assert not out.exists()


@pytest.mark.parametrize("workers", [0, -1])
def test_no_workers(workers: int) -> None:
    with pytest.raises(BadInput, match="--workers"):
        check_ray(workers)


@pytest.mark.parametrize("threads", [0, 10**6])
def test_workers_have_no_more_threads_than_one_pipeline_may(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "check_ray", lambda _: None)
    with pytest.raises(BadInput, match=f"--threads {threads} is not allowed"):
        RayEngine(Loading(None, "cpu", threads, None, verify=False), AskOptions(), "", workers=1)

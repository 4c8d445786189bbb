"""Planned against measured on the embedded bundle, in a process of its own."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import runnable
from tests.models.pictures import photo
from vlm_edge.core.bundle import open_bundle
from vlm_edge.core.specs import TextSpec
from vlm_edge.errors import BadInput, CheckFailed
from vlm_edge.memory.items import TEXT_TOOLS_BYTES
from vlm_edge.memory.phases import PHASES
from vlm_edge.pipeline.measuring import measure as measuring
from vlm_edge.pipeline.measuring.measure import Measured, measure
from vlm_edge.pipeline.measuring.measured_run import Run, _prepared, fed
from vlm_edge.pipeline.planning.plan import PlanOptions, make_report
from vlm_edge.units import MIB

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets a process's peak memory")


@needs_linux
def test_every_phase_of_the_embedded_bundle_is_near_its_plan() -> None:
    report = make_report("nano", PlanOptions(budget="1GiB", image_size="1322x1344"))
    found = measure("nano", report, threads=2)
    assert set(found) == set(PHASES)
    for phase, each in found.items():
        # a measured run has no text
        assert each.planned_bytes == report.plan.phases[phase] - TEXT_TOOLS_BYTES
        assert each.measured_bytes > 60 * MIB, phase
    planned = max(each.planned_bytes for each in found.values())
    measured = max(each.measured_bytes for each in found.values())
    # other machines load other libraries: the benchmark reports this machine's error, the test only catches what is broken
    assert 0.7 < planned / measured < 1.5


@needs_linux
def test_more_work_is_more_memory() -> None:
    peaks = [
        measure("nano", make_report("nano", PlanOptions(budget="1GiB", image_size=size)), threads=1)["preprocess"]
        for size in ("640x480", "4000x3000")
    ]
    assert peaks[1].measured_bytes - peaks[0].measured_bytes > 50 * MIB
    assert peaks[1].planned_bytes - peaks[0].planned_bytes > 50 * MIB


def test_errors_are_shares_of_what_was_measured() -> None:
    assert Measured(110, 100).error == pytest.approx(0.1)
    assert Measured(90, 100).error == pytest.approx(-0.1)


def test_only_bundles_on_a_cpu_are_run() -> None:
    with pytest.raises(BadInput, match="--measure"):
        measure("llava-1.5-7b", make_report("llava-1.5-7b", PlanOptions(budget="24GiB", target="cpu")))


@needs_linux
def test_a_run_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = make_report("nano", PlanOptions(budget="1GiB"))
    monkeypatch.setattr(measuring, "bundle_folder", lambda _: tmp_path / "gone")
    with pytest.raises(CheckFailed, match="gone"):
        measure("nano", report)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without graphs that can be run."""
    return runnable.make("qwen2_5_vl", tmp_path_factory.mktemp("qwen")).bundle.root


def test_a_limit_of_tiles_changes_nothing_where_there_are_none(qwen: Path) -> None:
    def planned(**options: int) -> Run:
        report = make_report(str(qwen), PlanOptions(budget="8GiB", image_size="90x61", max_model_len=512, **options))
        return Run(str(qwen), "", 1, -1 if report.request.tiles is None else report.request.tiles, 0, 512, 1)

    assert planned(max_tiles=3) == planned()
    page = qwen / "page.png"
    Image.fromarray(photo(90, 61)).save(page)
    arrays = _prepared(open_bundle(qwen), replace(planned(max_tiles=3), image=str(page)))
    assert {"pixel_values", "cu_seqlens", "window_index"} <= set(arrays)


@needs_linux
def test_tiles_without_an_image_are_not_measured(qwen: Path) -> None:
    report = make_report(str(qwen), PlanOptions(budget="8GiB", max_model_len=2048))
    solved = replace(report, request=replace(report.request, tiles=3))
    with pytest.raises(BadInput, match="rules of its own"):
        measure(str(qwen), solved)


@dataclass
class Engine:
    """Counts positions and keeps what it was given."""

    length: int = 0
    given: list[tuple[tuple[int, ...], np.ndarray | None]] = field(default_factory=list)

    def forward(self, embeds: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
        self.given.append((embeds.shape, positions))
        self.length += len(embeds)
        return np.zeros(9, np.float32)


@pytest.mark.parametrize("sections", [(), (2, 3, 3)])
def test_positions_go_to_decoders_that_count_in_three_parts_and_to_no_other(sections: tuple[int, ...]) -> None:
    text = TextSpec(
        hidden=6, layers=1, heads=1, kv_heads=1, head_dim=16, intermediate=8, vocab=9, max_positions=64,
        mrope_sections=sections,
    )  # fmt: skip
    engine = Engine()
    for tokens in (5, 1):
        fed(engine, text, np.ones((tokens, 6), np.float32))  # type: ignore[arg-type]
    assert [shape for shape, _ in engine.given] == [(5, 6), (1, 6)]
    if not sections:
        assert [positions for _, positions in engine.given] == [None, None]
        return
    prompt, step = (positions for _, positions in engine.given)
    assert prompt.dtype == step.dtype == np.int64
    assert (prompt.tolist(), step.tolist()) == ([[0, 1, 2, 3, 4]] * 3, [[5]] * 3)

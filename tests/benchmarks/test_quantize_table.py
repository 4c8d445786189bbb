"""What the table concludes from figures whose answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.nano_sequences import Asked
from benchmarks.quantize_table import write_table

COUNT = 400
ABOUT: dict[str, Any] = {
    "date": "2026-01-01",
    "command": "python -m x",
    "cpu": "a CPU",
    "versions": {"vlm-edge": "0"},
    "missing": [],
}


def row(factor: int, method: str, kl: float, right: int, calibration: str = "", bits: int = 4) -> dict[str, Any]:
    """`right` of COUNT answers exact; every question has the same KL."""
    group = 0 if method == "fp32" else 128
    return {
        "factor": factor, "bits": 32 if method == "fp32" else bits, "group_size": group, "method": method,
        "calibration": calibration, "calibration_tokens": 6000, "seconds": 0.0, "kl": [kl] * COUNT, "nll": [kl] * COUNT,
        "exact": [1] * right + [0] * (COUNT - right),
    }  # fmt: skip


def written(rows: list[dict[str, Any]], path: Path) -> str:
    nothing = torch.zeros(1, 1)
    held_out = [Asked(nothing, nothing, (1,), "value" if i % 2 else "count", i // 4) for i in range(COUNT)]
    write_table(rows, held_out, ABOUT, path / "table.md")
    return (path / "table.md").read_text("utf-8")


CALM = [row(1, "fp32", 0.0, 360), row(1, "rtn", 0.01, 359), row(1, "awq", 0.02, 359, "images"), row(8, "fp32", 0, 360)]


@pytest.mark.parametrize(
    ("kl", "right", "verdict"),
    [(0.03, 350, "1 of 1 at 4 bits"), (0.03, 330, "0 of 1 at 4 bits"), (0.05, 350, "0 of 1 at 4 bits")],
    ids=["both", "answers stay lost", "KL stays"],
)
def test_two_thirds_of_kl_and_of_answers(kl: float, right: int, verdict: str, tmp_path: Path) -> None:
    """RTN loses 40 of 360 answers and makes a KL of 0.1: back to 347 answers and a KL of 0.033 is two thirds."""
    text = written([*CALM, row(8, "rtn", 0.1, 320), row(8, "awq", kl, right, "images")], tmp_path)
    assert f"It is met in {verdict}." in text
    share = f"{100 * (1 - kl / 0.1):.0f} ("
    assert share in text
    assert f"| {100 * (right - 320) / 40:.0f} (" in text


def test_where_rtn_does_no_harm_there_is_nothing_to_win_back(tmp_path: Path) -> None:
    text = written([*CALM, row(8, "rtn", 0.019, 357), row(8, "awq", 0.03, 350, "images")], tmp_path)
    assert "RTN hurts nowhere that was measured" in text


def test_a_kl_that_doubles_counts_without_lost_answers(tmp_path: Path) -> None:
    text = written([*CALM, row(8, "rtn", 0.03, 360), row(8, "awq", 0.005, 360, "images")], tmp_path)
    assert "too few lost to say" in text
    assert "It is met in 1 of 1 at 4 bits." in text


def test_what_was_not_measured_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Not measured" not in written([*CALM], tmp_path)
    monkeypatch.setitem(ABOUT, "missing", ["x8-2-128-rtn-none"])
    assert "Not measured (factor, bits, group, method, calibration): x8-2-128-rtn-none." in written([*CALM], tmp_path)


def test_every_measurement_has_its_rows(tmp_path: Path) -> None:
    rows = [*CALM, row(8, "rtn", 0.1, 320), row(8, "awq", 0.03, 350, "images"), row(8, "awq", 0.06, 340, "text")]
    text = written(rows, tmp_path)
    everything, tasks, differences = (part.splitlines() for part in text.split("\n## ")[2:])
    assert len(everything) == len(tasks) == 4 + len(rows)
    assert "| nano | fp32 |  | 0.0000 (0.0000 to 0.0000) |" in text
    assert "count, n 200" in text
    assert len(differences) == 4 + 4
    assert "| twin x8 | 4 bits, 128 | AWQ, on text alone less AWQ, on pages | 0.0300 (0.0300 to 0.0300) |" in text
    assert "python -m x" in text

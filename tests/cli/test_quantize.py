"""`vlm-edge quantize` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import quantizable
from vlm_edge.cli import render
from vlm_edge.cli.main import execute
from vlm_edge.pipeline.quantizing.page import page

COMMON = ["--group-size", "32", "--samples", "6", "--seqlen", "64"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(checkpoint, calibration data)"""
    folder = tmp_path_factory.mktemp("model")
    quantizable.save_text(folder)
    return folder, quantizable.write_data(tmp_path_factory.mktemp("data"), 6, images=False)


def test_json_is_one_object_and_progress_goes_to_stderr(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = execute(["quantize", str(made[0]), str(tmp_path / "out"), "--calib", str(made[1]), *COMMON, "--json"])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    found = json.loads(shown.out)
    assert found["gates"] == {"bit_exact": True, "kl_no_worse_than_rtn": True}
    assert {artifact["path"] for artifact in found["artifacts"]} >= {
        "llm/awq/model.safetensors",
        "reports/quantize.json",
        "reports/quantize.html",
    }
    assert found["memory"]["peak_bytes"] > 0
    assert "layer 1/2: loss 0." in shown.err
    assert " left, " in shown.err
    report = json.loads((tmp_path / "out/reports/quantize.json").read_text())
    assert report["layers"] == found["layers"]
    assert (tmp_path / "out/reports/quantize.html").read_text("utf-8") == page(report)


def test_the_table_has_a_row_for_each_layer(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["quantize", str(made[0]), str(tmp_path), "--calib", str(made[1]), *COMMON, "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    rows = shown.out.splitlines()
    assert rows[1].split() == ["layer", "loss", "/", "RTN", "ratios", "groups", "clipped"]
    assert [row.split()[0] for row in rows[2:4]] == ["0", "1"]
    assert "held-out KL to fp32" in shown.out


@pytest.mark.parametrize(
    ("arguments", "error", "fix"),
    [
        (["--target", "tensorrt"], "error: --target tensorrt is not supported", "use one of none, cpu, cuda"),
        (["--max-memory", "1MiB"], "error: --max-memory 1.0 MiB is too small", "use --max-memory"),
        (["--max-memory", "much"], "error: 'much' is not an amount of memory", "write it like 24GiB"),
        (["--seqlen", "4096"], "error: --seqlen 4096 is longer than the model's context", "use 128 or less"),
    ],
)
def test_refusals_are_two_lines_and_exit_2(
    arguments: list[str],
    error: str,
    fix: str,
    made: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = execute(["quantize", str(made[0]), str(tmp_path / "out"), "--calib", str(made[1]), *COMMON, *arguments])
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert [line.partition(":")[0] for line in lines] == ["error", "fix"]
    assert error in lines[0]
    assert fix in lines[1]


def test_the_bar_counts_layers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with render.layers("quantize") as on_layer:
        on_layer(1, 2, "layer 1/2: half")
        on_layer(2, 2, "layer 2/2: whole [b]")
    assert "layer 2/2: whole [b]" in capsys.readouterr().err

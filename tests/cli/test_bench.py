"""vlm-edge bench on the embedded model: the table, the JSON, and what is refused before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vlm_edge.cli.main import execute
from vlm_edge.pipeline.answering.run import Pipeline

QUICK = ["bench", "--repeats", "2", "--warmup", "0", "--max-new-tokens", "4", "--threads", "1"]
Captured = pytest.CaptureFixture[str]


def test_json_and_picture(tmp_path: Path, capsys: Captured) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "page.png"
    Image.linear_gradient("L").resize((300, 200)).save(page)
    picture = tmp_path / "bench.png"
    arguments = ["--image", str(page), "--max-tiles", "2", "--json", "--png", str(picture)]
    assert execute([*QUICK, *arguments]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    report = json.loads(printed.out)
    assert (report["model"], report["image"], report["image_px"]) == ("nano", "page.png", [300, 200])
    assert (report["batch"], report["threads"], report["tokens"]["generated"]) == (1, 1, 4)
    assert report["tiles"] <= 2
    assert len(report["warm_ms"]["ttft"]["values"]) == 2
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_table_has_a_line_for_each_stage(capsys: Captured) -> None:
    assert execute([*QUICK, "nano"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for start in (
        "LLM int4", "vision fp32", "batch 1", "visual tokens 448 before", "prefill 2", "decode 4 tokens", "memory bandwidth",
        "peak memory", "versions vlm-edge", "load", "saliency", "first token (TTFT)", "each further token",
    ):  # fmt: skip
        assert any(line.startswith(start) for line in lines), start
    times = next(line for line in lines if line.startswith("prefill") and "tokens" not in line).split()[1:]
    assert len(times) == 4
    assert float(times[2]) <= float(times[1]) <= float(times[3])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--repeats", "0"],
        ["--warmup", "-1"],
        ["--max-new-tokens", "1"],
        ["--png", "bench.jpg"],
        ["--image", "nowhere.png"],
        ["--tiling", "gird"],
        ["--budget", "lots"],
        ["nowhere/bundle"],
    ],
)
def test_bad_arguments_stop_before_a_bundle_is_loaded(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(Pipeline, "load", lambda *_, **__: pytest.fail("loaded"))
    assert execute(["bench", *arguments]) == 2
    error, fix = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert fix.startswith("fix: ")


def test_a_budget_that_nothing_fits(capsys: Captured) -> None:
    assert execute([*QUICK, "--budget", "100MiB"]) == 1
    assert "MiB are allowed" in capsys.readouterr().err


def test_help_has_an_example(capsys: Captured) -> None:
    assert execute(["bench", "--help"]) == 0
    assert "Example: vlm-edge bench out/" in " ".join(capsys.readouterr().out.split())

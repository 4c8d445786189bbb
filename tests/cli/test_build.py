"""`vlm-edge build` as a person types it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime_genai")

from tests import buildable
from vlm_edge.cli import build as command
from vlm_edge.cli import render
from vlm_edge.cli.main import execute
from vlm_edge.pipeline.building.build import BuildProgress

Captured = pytest.CaptureFixture[str]
QUICK = ["--samples", "4", "--seqlen", "48", "--image-size", "60x40"]


@pytest.fixture(scope="module", autouse=True)
def _quickly() -> Iterator[None]:
    with buildable.quickly():
        yield


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line without OUT's content being there yet."""
    folder = tmp_path_factory.mktemp("asked")
    model, data = buildable.save(folder)
    recipe = buildable.write_recipe(folder)
    return ["build", str(model), str(folder / "out"), "--recipe", str(recipe), "--calib", str(data), *QUICK]


def test_json_is_one_object_and_a_second_run_a_table_of_what_is_finished(asked: list[str], capsys: Captured) -> None:
    assert execute([*asked, "--method", "rtn", "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    steps = {step["name"]: step for step in found["steps"]}
    assert list(steps) == ["plan", "export", "quantize", "verify", "measure"]
    assert steps["plan"]["planned_peak_bytes"] is None
    for name in ("export", "quantize", "verify", "measure"):
        assert steps[name]["planned_peak_bytes"] > 0
        assert steps[name]["measured_peak_bytes"] > 0
        assert steps[name]["seconds"] > 0
        assert not steps[name]["skipped"]
    assert found["plan"]["fits"]
    assert (found["recipe"], found["method"], found["target"]) == ("tiny", "rtn", "cpu")
    assert {"vision/cpu/model.onnx", "llm/cpu/model.onnx"} <= {artifact["path"] for artifact in found["artifacts"]}
    assert "export 2/5: trace; " in shown.err
    assert "quantize 3/5: layer 1/2" in shown.err
    assert " MiB held, peak " in shown.err
    assert execute([*asked, "--method", "rtn"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows[2:7]] == list(steps)
    assert sum("finished before" in row for row in rows) == 4
    assert "; a run holds " in rows[7]


@pytest.mark.parametrize(
    ("options", "code", "error", "fix"),
    [
        (["--max-memory", "200MiB"], 1, "error: export needs ", "fix: give it --max-memory "),
        (["--budget", "50MiB"], 1, "error: the bundle would not fit the budget", "fix: "),
        (["--max-memory", "much"], 2, "error: 'much' is not an amount of memory", "fix: write it like"),
        (["--recipe", "tinny.yaml"], 2, "error: tinny.yaml cannot be read", "fix: check the path"),
        (["--recipe", "lava-1.5-7b"], 2, "error: there is no recipe 'lava-1.5-7b'", "fix: did you mean llava-1.5-7b"),
        (["--target", "tensorrt"], 2, "error: --target tensorrt is not supported", "fix: use one of cpu, cuda"),
        (["--revision", "main"], 2, "error: --revision is for models of the hub", "fix: leave it out"),
    ],
)
def test_refusals_are_two_lines(
    options: list[str], code: int, error: str, fix: str, asked: list[str], tmp_path: Path, capsys: Captured
) -> None:
    words = [asked[0], asked[1], str(tmp_path / "out"), *asked[3:], *options, "--quiet"]
    assert execute(words) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    first, second = shown.err.splitlines()
    assert first.startswith(error)
    assert second.startswith(fix)
    assert not (tmp_path / "out").exists()


def test_a_recipe_is_asked_for(capsys: Captured) -> None:
    assert execute(["build", "model", "out"]) == 2
    assert "--recipe" in capsys.readouterr().err.splitlines()[0]


def progress(**parts: Any) -> BuildProgress:
    given = {"text": "trace", "left_s": None, "held_bytes": 1 << 20, "peak_bytes": 2 << 20, "planned_bytes": 3 << 20}
    return BuildProgress("export", 2, 5, **{**given, **parts})


def test_looks_at_the_memory_are_shown_where_they_can_be_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, int, str]] = []
    on_progress = command._display(lambda *given: shown.append(given))
    on_progress(progress())
    on_progress(progress(text=""))
    assert shown == [(1, 5, "export 2/5: trace; 1.0 MiB held, peak 2.0 MiB of 3.0 MiB planned")]
    monkeypatch.setattr(render, "is_live", lambda: True)
    on_progress(progress(text="", left_s=75.2, planned_bytes=None))
    assert shown[1] == (1, 5, "export 2/5: trace; 1:15 left, 1.0 MiB held, peak 2.0 MiB")

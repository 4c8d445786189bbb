"""vlm-edge eval --sweep and run --recipe, with a pipeline that looks its answers up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fake_pipeline import FakePipeline, write_rows
from vlm_edge.cli.main import execute
from vlm_edge.pipeline.answering.answer import Answer
from vlm_edge.pipeline.answering.options import AskOptions
from vlm_edge.pipeline.answering.run import Pipeline
from vlm_edge.pipeline.sweeping import chart as sweep_chart
from vlm_edge.pipeline.sweeping import sweep as sweep_module

PAGE = Path(__file__).parents[2] / "calibration/pages/receipt.png"


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    fake = FakePipeline({"q1": "1"})
    monkeypatch.setattr(Pipeline, "load", lambda *_, **__: fake)
    monkeypatch.setattr(sweep_module, "peak_bytes", lambda _: 1 << 27)
    monkeypatch.setattr(sweep_chart, "draw", lambda _report, path: path.write_bytes(b""))
    return fake


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    data = write_rows(tmp_path, [{"image": "a.png", "question": question, "answer": "1"} for question in ("q1", "q2")])
    (tmp_path / "ways.yaml").write_text("points: [{reduce: [none, tome], keep: [0.5]}]\n")
    return [
        "eval",
        str(data),
        "--sweep",
        str(tmp_path / "ways.yaml"),
        "--out",
        str(tmp_path / "out"),
    ]


def test_the_table_and_the_winner_are_on_stdout_and_files_named_on_stderr(
    pipeline: FakePipeline, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(words) == 0
    shown = capsys.readouterr()
    assert "salient, 6 tiles, tome 0.5" in shown.out
    assert "50.0%" in shown.out
    assert "Winner: salient, 6 tiles, every token" in shown.out
    assert str(tmp_path / "out/nano-ways.yaml") in shown.err
    assert len(pipeline.calls) == 4
    assert execute(words) == 0
    assert "4 answers taken from an earlier run" in capsys.readouterr().err
    assert len(pipeline.calls) == 4


def test_json_is_what_the_folder_holds(
    pipeline: FakePipeline, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute([*words, "--json", "--limit", "1", "--max-new-tokens", "7"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "out/sweep.json").read_text())
    assert [point["overall"]["n"] for point in report["points"]] == [1, 1]
    assert {options.max_new_tokens for _, _, options in pipeline.calls if options} == {7}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--keep", "0.5"], "--keep chooses nothing"),
        (["--reduce", "none"], "--reduce chooses nothing"),
        (["--tiling", "auto"], "--tiling chooses nothing"),
        (["--max-tiles", "2"], "--max-tiles chooses nothing"),
        (["--threshold", "0.5"], "--threshold chooses nothing"),
        (["--saliency", "cnn"], "--saliency chooses nothing"),
        (["--seed", "1"], "--seed chooses nothing"),
        (["--tiles-from-data"], "--tiles-from-data chooses nothing"),
        (["--limit", "0"], "--limit 0 is not allowed"),
    ],
)
def test_what_the_file_says_is_no_option(
    pipeline: FakePipeline, words: list[str], more: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute([*words, *more]) == 2
    error, fix = capsys.readouterr().err.splitlines()
    assert says in error
    assert fix.startswith("fix: ")
    assert pipeline.calls == []


def test_a_folder_for_results_is_needed(
    pipeline: FakePipeline, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(words[:-2]) == 2
    error, fix = capsys.readouterr().err.splitlines()
    assert "to a folder" in error
    assert fix == "fix: name it with --out FOLDER"
    assert pipeline.calls == []


def test_a_misspelt_key_is_two_lines(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ways.yaml").write_text("points: [{treshold: [0.9]}]\n")
    assert execute(words) == 2
    error, fix = capsys.readouterr().err.splitlines()
    assert "ways.yaml: points.0.treshold" in error
    assert fix == "fix: did you mean 'threshold'?"


class OneQuestion(FakePipeline):
    """Asked as `run` asks."""

    def ask(self, image: list[str], question: str, options: AskOptions | None = None, **_: object) -> Answer:
        return super().ask(Path(image[0]), question, options)


@pytest.mark.usefixtures("pipeline")
def test_run_asks_as_a_winner_does(
    monkeypatch: pytest.MonkeyPatch, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ways.yaml").write_text("points: [{tiling: [auto], max_tiles: [2], reduce: [tome], keep: [0.25]}]\n")
    assert execute(words) == 0
    recipe = str(tmp_path / "out/nano-ways.yaml")
    assert execute(["recipes", "check", recipe]) == 0
    running = OneQuestion()
    monkeypatch.setattr(Pipeline, "load", lambda *_, **__: running)
    asked = ["run", str(PAGE), "q1", "--recipe", recipe, "--json"]
    assert execute(asked) == 0
    assert execute([*asked, "--keep", "0.75"]) == 0
    found = [options for _, _, options in running.calls]
    assert [
        (each.tiling, each.max_tiles, each.reduce, each.keep) for each in found if isinstance(each, AskOptions)
    ] == [
        ("auto", 2, "tome", 0.25),
        ("auto", 2, "tome", 0.75),
    ]
    capsys.readouterr()
    assert execute(["run", str(PAGE), "q1", "--recipe", str(tmp_path / "absent.yaml")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_plot_without_matplotlib_is_refused_before_anything_is_asked(
    pipeline: FakePipeline, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else object())
    assert execute(words) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: a sweep's plot needs matplotlib",
        "fix: pip install 'vlm-edge[report]'",
    ]
    assert pipeline.calls == []

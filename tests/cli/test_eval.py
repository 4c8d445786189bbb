"""vlm-edge eval, with a pipeline that looks its answers up in place of a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.terminal import Terminal
from tests.fake_pipeline import FakePipeline, write_rows
from vlm_edge.cli.main import execute
from vlm_edge.pipeline.answering.options import AskOptions
from vlm_edge.pipeline.answering.run import Pipeline

BOX = "<box>100,100,200,200</box>"
ROWS = [
    {"image": "a.png", "question": "q1", "answer": "1", "task": "value", "tiles": [[0, 0, 9, 9]], "stratum": ["long"]},
    {"image": "a.png", "question": "q2", "answer": "2", "task": "value", "tiles": []},
    {"image": "b.png", "question": "q3", "answer": BOX, "task": "where", "tiles": []},
]


class Loader:
    """Stands in for Pipeline.load and keeps its arguments."""

    def __init__(self) -> None:
        self.pipeline = FakePipeline({"q1": "1", "q2": "x", "q3": "<box>100,100,200,180</box>"})
        self.asked_for: list[Any] = []

    def __call__(self, bundle: Path | None, **options: Any) -> FakePipeline:
        self.asked_for.append((bundle, options))
        return self.pipeline


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    stand_in = Loader()
    monkeypatch.setattr(Pipeline, "load", stand_in)
    return stand_in


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path, ROWS)


def test_the_table_has_a_line_for_each_task_and_stratum(
    loader: Loader, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["eval", "nano", str(data), "--threads", "1"]) == 0
    shown = capsys.readouterr()
    lines = {line.split("  ")[0]: line.split() for line in shown.out.splitlines()}
    assert lines["value"][1:4] == ["2", "1", "50.0%"]
    assert lines["where"][1:4] == ["1", "1", "100.0%"]
    assert lines["where"][-1] == "0.800"
    assert lines["all"][1:4] == ["3", "2", "66.7%"]
    assert lines["stratum long"][2:4] == ["1", "1"]
    assert "448 -> 112" in shown.out
    assert loader.asked_for == [("nano", {"device": "auto", "threads": 1, "budget": None, "verify": False})]


def test_json_is_one_object_and_nothing_else(loader: Loader, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["eval", "some/bundle", str(data), "--reduce", "threshold", "--threshold", "0.9", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["overall"]["right"] == 2
    assert report["tasks"]["value"]["interval_95"] == [0.0945, 0.9055]  # 1 of 2
    assert report["options"] == {
        "reduce": "threshold",
        "threshold": 0.9,
        "temperature": 0.0,
        "top_p": 1.0,
        "stop": [],
        "seed": 0,
        "tiles_from_data": False,
    }
    assert report["memory"] == {"planned_peak_bytes": 300, "measured_peak_bytes": 203}
    assert loader.asked_for[0][0] == "some/bundle"
    assert loader.pipeline.calls[0][2] == AskOptions(reduce="threshold", threshold=0.9)


def test_tiles_from_data_and_limit(loader: Loader, data: Path) -> None:
    assert execute(["eval", "nano", str(data), "--tiles-from-data", "--limit", "2", "--json"]) == 0
    assert [options for _, _, options in loader.pipeline.calls] == [
        AskOptions(tiles=((0, 0, 9, 9),)),
        AskOptions(tiles=()),
    ]


def test_a_second_run_continues_the_first(loader: Loader, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = data.with_name("outcomes.jsonl")
    arguments = ["eval", "nano", str(data), "--out", str(out), "--json"]
    assert execute([*arguments, "--limit", "1"]) == 0
    capsys.readouterr()
    assert execute(arguments) == 0
    assert json.loads(capsys.readouterr().out)["resumed"] == 1
    assert len(loader.pipeline.calls) == 3
    assert len(out.read_text().splitlines()) == 3


def test_a_failing_image_stops_or_is_listed(loader: Loader, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loader.pipeline.fails_on = "b.png"
    assert execute(["eval", "nano", str(data)]) == 2
    error, fix = capsys.readouterr().err.splitlines()
    assert error.startswith("error: b.png is damaged")
    assert fix.startswith("fix: ")
    assert execute(["eval", "nano", str(data), "--keep-going"]) == 0
    shown = capsys.readouterr()
    assert "failed: b.png, 'q3': b.png is damaged" in shown.err
    assert "failed" not in shown.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tiling", "gird"],
        ["--tiles-from-data", "--tiling", "grid"],
        ["--limit", "0"],
        ["--keep", "2"],
        ["--out", "."],
    ],
)
def test_bad_arguments_stop_before_a_bundle_is_loaded(
    loader: Loader, data: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["eval", "nano", str(data), *arguments]) == 2
    assert capsys.readouterr().err.splitlines()[0].startswith("error: ")
    assert loader.asked_for == []


def test_a_bad_line_is_named(loader: Loader, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with data.open("a") as stream:
        stream.write('{"image": "a.png"}\n')
    assert execute(["eval", "nano", str(data)]) == 2
    assert f"error: {data}:4: " in capsys.readouterr().err
    assert loader.asked_for == []


def test_bad_lines_are_passed_over_with_keep_going(
    loader: Loader, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with data.open("a") as stream:
        stream.write('{"image": "a.png"}\n{\n')
    assert execute(["eval", "nano", str(data), "--keep-going", "--json"]) == 0
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert report["overall"]["n"] == 3
    assert [line["line"] for line in report["bad_lines"]] == [4, 5]
    assert f"passed over: {data}:4: " in shown.err
    assert len(loader.pipeline.calls) == 3


def test_options_of_run_that_choose_how_a_question_is_asked(loader: Loader, data: Path) -> None:
    chosen = ["--seed", "7", "--max-pixels", "99", "--budget", "1GiB", "--verify"]
    assert execute(["eval", "nano", str(data), *chosen, "--json"]) == 0
    assert loader.asked_for == [("nano", {"device": "auto", "threads": None, "budget": "1GiB", "verify": True})]
    assert loader.pipeline.calls[0][2] == AskOptions(seed=7, max_pixels=99)


def test_without_a_bundle_it_is_the_embedded_one(loader: Loader, data: Path) -> None:
    assert execute(["eval", str(data), "--json"]) == 0
    assert loader.asked_for[0][0] is None
    assert len(loader.pipeline.calls) == len(ROWS)


def test_a_third_word_is_refused(loader: Loader, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["eval", "nano", str(data), "more"]) == 2
    error, fix = capsys.readouterr().err.splitlines()
    assert error.startswith("error: 3 words")
    assert "vlm-edge eval" in fix
    assert loader.asked_for == []


@pytest.mark.parametrize(
    ("line", "says"),
    [("7", "data.jsonl:1: input should be an object"), ('{"image": 7}', "data.jsonl:1: image: input should be")],
)
def test_a_line_that_is_no_row_is_named(
    line: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data.jsonl").write_text(line)
    assert execute(["eval", str(tmp_path / "data.jsonl")]) == 2
    error, fix = capsys.readouterr().err.splitlines()
    assert says in error
    assert ": :" not in error
    assert fix.startswith("fix: correct ")


@pytest.mark.usefixtures("loader")
def test_a_task_may_be_called_anything_on_a_terminal(
    data: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    data.write_text(json.dumps({"image": "a.png", "question": "q1", "answer": "1", "task": "[/x]"}))
    monkeypatch.setattr("sys.stdout", terminal.stream)
    assert execute(["eval", str(data)]) == 0
    assert "[/x]" in terminal.text()


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["eval", "--help"]) == 0
    assert "Example: vlm-edge eval questions.jsonl" in " ".join(capsys.readouterr().out.split())

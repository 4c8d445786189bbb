"""Sweeps with a pipeline that looks its answers up: what is asked, logged and continued, and who wins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.fake_pipeline import FakePipeline, write_rows
from vlm_edge.core.recipe import load_recipe
from vlm_edge.errors import BadImage, BadInput, MissingDependency
from vlm_edge.pipeline.answering.run import Pipeline
from vlm_edge.pipeline.evaluating.rows import OutcomeLog
from vlm_edge.pipeline.planning import recipe_checks
from vlm_edge.pipeline.sweeping import chart as sweep_chart
from vlm_edge.pipeline.sweeping import run as sweep_run
from vlm_edge.pipeline.sweeping import sweep as sweep_module
from vlm_edge.pipeline.sweeping.run import PAGE, PICTURE, RESULTS, Done, Request
from vlm_edge.pipeline.sweeping.sweep import LOG, locked_log

WAYS = {"tiling": ["auto"], "max_tiles": [2, 4], "reduce": ["none", "tome"], "keep": [0.5]}
ROWS = [
    {"image": "a.png", "question": "q1", "answer": "1", "task": "value", "tiles": []},
    {"image": "b.png", "question": "q2", "answer": "2", "task": "value", "tiles": []},
    {"image": "a.png", "question": "q3", "answer": "3", "task": "count", "tiles": [[0, 0, 9, 9]]},
]


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all else here: one test does it."""
    monkeypatch.setattr(sweep_chart, "draw", lambda _report, path: path.write_bytes(b""))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[FakePipeline]:
    """Every pipeline that was loaded; memory is not measured."""
    loaded: list[FakePipeline] = []

    def load(*_: object, **__: object) -> FakePipeline:
        loaded.append(FakePipeline({"q1": "1", "q2": "2", "q3": "no"}))
        return loaded[-1]

    monkeypatch.setattr(Pipeline, "load", load)
    monkeypatch.setattr(sweep_module, "peak_bytes", lambda _: 1 << 27)
    return loaded


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path, ROWS)


def request(data: Path, *blocks: dict[str, object], keep_going: bool = False, **other: object) -> Request:
    file = data.with_name("ways.yaml")
    file.write_text(yaml.safe_dump({"points": list(blocks) or [WAYS], **other}))
    return Request(file, data, data.with_name("out"), keep_going=keep_going, command="vlm-edge eval")


def run(data: Path, *blocks: dict[str, object], **other: object) -> Done:
    return sweep_run.run(sweep_run.prepare(request(data, *blocks, **other)))


def logged(data: Path) -> list[str]:
    return [json.loads(line)["id"] for line in (data.with_name("out") / LOG).read_text().splitlines()]


def test_every_row_is_asked_in_every_way_image_by_image(asked: list[FakePipeline], data: Path) -> None:
    steps: list[int] = []
    prepared = sweep_run.prepare(request(data))
    done = sweep_run.run(prepared, on_step=lambda: steps.append(1))
    assert len(steps) == prepared.steps == 4 * (3 + 1)
    calls = [(image, question) for image, question, _ in asked[0].calls]
    assert calls == [("a.png", "q1"), ("a.png", "q3")] * 4 + [("b.png", "q2")] * 4
    shown = [options.max_tiles for image, _, options in asked[0].calls if image == "b.png" and options is not None]
    assert shown == [2, 2, 4, 4]  # ways that show the same tiles follow each other
    assert [point["overall"]["right"] for point in done.report["points"]] == [2] * 4
    assert len(asked) == 1


def test_a_second_run_asks_nothing_and_finds_the_same(asked: list[FakePipeline], data: Path) -> None:
    first = run(data)
    lines = logged(data)
    again = run(data)
    assert len(asked) == 1  # not even loaded
    assert logged(data) == lines
    assert all(point["resumed"] == 3 for point in again.report["points"])
    strip = [{**point, "resumed": 0} for point in again.report["points"]]
    assert strip == first.report["points"]


def test_another_file_takes_from_the_log_what_it_shares(asked: list[FakePipeline], data: Path) -> None:
    run(data)
    run(data, WAYS, {"tiling": ["none"], "reduce": ["none"]})
    assert len(asked[1].calls) == 3
    assert len(set(logged(data))) == len(logged(data)) == 5 * (3 + 1)


KILLED = """
import sys, time
from pathlib import Path
from tests.fake_pipeline import FakePipeline
from vlm_edge.pipeline.sweeping import sweep, chart as sweep_chart, run as sweep_run
from vlm_edge.pipeline.answering.run import Pipeline

class Slow(FakePipeline):
    def ask(self, *asked):
        time.sleep(0.02)
        return super().ask(*asked)

Pipeline.load = lambda *_, **__: Slow({"q1": "1"})
sweep.peak_bytes = lambda _: 1 << 27
sweep_chart.draw = lambda _report, _path: None
here = Path(sys.argv[1])
request = sweep_run.Request(here / "ways.yaml", here / "data.jsonl", here / "out")
sweep_run.run(sweep_run.prepare(request))
"""


def test_a_killed_sweep_goes_on_without_a_lost_or_doubled_row(data: Path) -> None:
    data.write_text("".join(json.dumps({**row, "question": f"q{i}"}) + "\n" for row in ROWS for i in range(5)))
    request(data)
    log = data.with_name("out") / LOG
    command = [sys.executable, "-c", KILLED, str(data.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for least in (5, 25):
        child = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while not (log.exists() and log.read_bytes().count(b"\n") >= least):
            assert child.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
    whole = log.read_bytes()
    log.write_bytes(whole[: len(whole) - 7])  # as if the last write had been cut short
    before = Counter(logged_lines(log))
    subprocess.run(command, env=environment, check=True, timeout=240)
    after = logged(data)
    # 15 rows in 4 ways, and a measurement of each way
    assert len(after) == len(set(after)) == 4 * (15 + 1)
    assert not before - Counter(logged_lines(log))
    results = json.loads((data.with_name("out") / RESULTS).read_text())
    assert [point["overall"]["n"] for point in results["points"]] == [15] * 4


def logged_lines(log: Path) -> list[bytes]:
    return [line for line in log.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def test_two_sweeps_into_one_folder_are_refused(asked: list[FakePipeline], data: Path) -> None:
    with locked_log(data.with_name("out")), pytest.raises(BadInput, match="another sweep is writing"):
        run(data)
    assert asked == []
    run(data)


def test_a_failing_image_stops_the_sweep_or_counts_as_wrong(
    monkeypatch: pytest.MonkeyPatch, asked: list[FakePipeline], data: Path
) -> None:
    failing = FakePipeline({"q1": "1", "q3": "3"}, fails_on="b.png")
    monkeypatch.setattr(Pipeline, "load", lambda *_, **__: failing)
    with pytest.raises(BadImage, match="q2"):
        run(data)
    for _ in range(2):  # failures are asked again, and the same failure is not written again
        done = run(data, keep_going=True)
        assert [point["overall"]["errors"] for point in done.report["points"]] == [1] * 4
        assert len(set(logged(data))) == len(logged(data)) == 4 * (3 + 1)
    assert asked == []


def test_bad_lines_are_told_with_their_numbers(asked: list[FakePipeline], data: Path) -> None:
    with data.open("ab") as stream:
        stream.write(b'{"image": "a.png"}\n\xff\n')
    with pytest.raises(BadInput, match=r"data\.jsonl:4: "):
        sweep_run.prepare(request(data))
    done = run(data, keep_going=True)
    assert [line["line"] for line in done.report["bad_lines"]] == [4, 5]
    assert done.report["rows"] == 3
    assert len(asked) == 1


def test_only_the_files_tasks_are_asked(asked: list[FakePipeline], data: Path) -> None:
    done = run(data, tasks=["value"])
    assert done.report["rows"] == 2
    assert {question for _, question, _ in asked[0].calls} == {"q1", "q2"}
    with pytest.raises(BadInput, match="no row of the tasks vallue"):
        run(data, tasks=["vallue"])


def test_the_plot_is_a_picture_and_its_folder_must_be_there(
    monkeypatch: pytest.MonkeyPatch, asked: list[FakePipeline], data: Path
) -> None:
    report = run(data, WAYS, {"tiling": ["none", "grid"], "reduce": ["random", "downsample"]}).report
    assert len(asked) == 1
    monkeypatch.undo()
    path = data.with_name("plot.png")
    sweep_chart.draw(report, path, extra=[("every tile", 0.9, 5000.0)])
    with Image.open(path) as picture:
        assert picture.size[0] > 1000
        assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 50
    with pytest.raises(BadInput, match="cannot be written"):
        sweep_chart.draw(report, path / "inside.png")


def test_results_are_written_and_the_winner_is_a_recipe(asked: list[FakePipeline], data: Path) -> None:
    done = run(data, winner={"within_points": 1, "by": "estimate"})
    out = data.with_name("out")
    assert json.loads((out / RESULTS).read_text()) == done.report
    assert (out / PICTURE).exists()
    page = (out / PAGE).read_text()
    for point in done.report["points"]:
        assert point["label"] in page
    assert "Winner: salient, 2 tiles, every token, by the rule: the fewest visual tokens" in page
    assert done.recipe == out / "nano-ways.yaml"
    checked = recipe_checks.check(str(done.recipe))
    assert (checked.problem, checked.ok) == ("", True)
    recipe = load_recipe(done.recipe)
    assert (recipe.limits.max_tiles, recipe.defaults.tiling, recipe.defaults.reduce) == (2, "auto", "none")
    assert (recipe.view_tokens, recipe.join_rows) == (("<global>", "<tile>"), True)
    assert len(asked) == 1


def test_each_rows_own_tiles_are_shown_and_win_nothing(asked: list[FakePipeline], data: Path) -> None:
    done = run(
        data, {"own_tiles": True, "reduce": ["none"]}, {"tiling": ["auto"], "max_tiles": [6], "reduce": ["none"]}
    )
    shown = {
        question: options.tiles for _, question, options in asked[0].calls if options and options.tiles is not None
    }
    assert shown == {"q1": (), "q2": (), "q3": ((0, 0, 9, 9),)}
    assert done.report["winner"] == done.report["best"] == "salient, 6 tiles, every token"
    alone = run(data, {"own_tiles": True, "reduce": ["none"]})
    assert alone.recipe is None
    assert alone.report["winner"] == "each row's own tiles, every token"


def test_without_matplotlib_nothing_is_asked(
    monkeypatch: pytest.MonkeyPatch, asked: list[FakePipeline], data: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else object())
    with pytest.raises(MissingDependency) as failure:
        run(data)
    assert "vlm-edge[report]" in failure.value.remedy
    assert asked == []


def test_a_log_that_is_something_else_is_left_alone(asked: list[FakePipeline], data: Path) -> None:
    out = data.with_name("out")
    out.mkdir()
    (out / LOG).write_text("notes\n")
    with pytest.raises(BadInput, match="not a log of outcomes"):
        run(data)
    assert (out / LOG).read_text() == "notes\n"
    (out / LOG).unlink()
    out.rmdir()
    out.write_text("a file")
    with pytest.raises(BadInput, match="is no folder"):
        run(data)
    assert asked == []


def test_the_log_is_one_that_eval_reads(asked: list[FakePipeline], data: Path) -> None:
    run(data)
    log = OutcomeLog(data.with_name("out") / LOG)
    assert all(log.get(identity) is not None for identity in logged(data))
    assert len(asked) == 1

"""Batches on the embedded model: no row lost or doubled, whatever ends a run, and the answers are those of `ask`."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.program import VLM_EDGE, in_checkout
from vlm_edge import AskOptions, Pipeline
from vlm_edge.core.resources import resource_dir
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.batch_inference.batch import (
    Answerer,
    Loading,
    LocalEngine,
    Summary,
    asked_of,
    count_rows,
    run_batch,
)
from vlm_edge.pipeline.batch_inference.input import BatchInput, Row
from vlm_edge.pipeline.batch_inference.log import BatchLog

QUESTIONS = ("what is the total?", "what color is the circle?", "how many circles are there?", "where is the square?")
OF = asked_of("0" * 64, AskOptions())
NANO = Loading(None, "cpu", 1, None, verify=False)


class Echo:
    """Answers with the question, and keeps what it was asked; may stop in the middle."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.asked: list[int] = []
        self._stop_after = stop_after

    def answers(self, rows: Iterable[Row]) -> Iterator[tuple[Row, dict[str, Any]]]:
        for row in rows:
            if len(self.asked) == self._stop_after:
                raise KeyboardInterrupt
            self.asked.append(row.number)
            yield row, {
                "answer": row.question, "tokens": {"generated": 2},
                "memory": {"planned_peak_bytes": 10, "measured_peak_bytes": row.number},
            }  # fmt: skip


def rows_file(folder: Path, count: int, *, bad: tuple[int, ...] = ()) -> Path:
    """Rows about the sample pages, each with a question of its own; those in `bad` are no JSON."""
    pages = sorted((resource_dir("calibration") / "pages").glob("*.png"))[:3]  # as many as a pipeline remembers
    for page in pages:
        if not (folder / page.name).exists():
            shutil.copyfile(page, folder / page.name)
    path = folder / "rows.jsonl"
    lines = [
        "{" if n in bad else json.dumps({"image": pages[n % 3].name, "question": QUESTIONS[n % 4], "id": f"r{n}"})
        for n in range(1, count + 1)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def outcome(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def run(source: BatchInput, out: Path, engine: Any, of: str = OF, **options: bool) -> Summary:
    with BatchLog.open(out, **options) as log:
        return run_batch(source, log, engine, of=of, total=count_rows(source, log, of))


def test_rows_come_out_as_they_went_in_and_bad_ones_with_their_error(tmp_path: Path) -> None:
    source, out = BatchInput(rows_file(tmp_path, 6, bad=(2, 5))), tmp_path / "out.jsonl"
    engine = Echo()
    summary = run(source, out, engine)
    assert engine.asked == [1, 3, 4, 6]
    lines = outcome(out)
    assert sorted(line["row"] for line in lines) == [1, 2, 3, 4, 5, 6]
    assert {line["row"] for line in lines if "error" in line} == {2, 5}
    assert {line["row"]: line["id"] for line in lines}[3] == "r3"
    plain = summary.to_json()
    assert (plain["rows"], plain["answered"], plain["failed"], plain["resumed"]) == (6, 4, 2, 0)
    assert plain["generated_tokens"] == 8
    assert plain["memory"]["planned_peak_bytes"] == 10
    assert [failure["row"] for failure in plain["failures"]] == [2, 5]


def test_a_run_that_ended_is_continued(tmp_path: Path) -> None:
    source, out = BatchInput(rows_file(tmp_path, 9, bad=(1,))), tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(source, out, Echo(stop_after=3))
    engine = Echo()
    steps: list[None] = []
    with BatchLog.open(out) as log:
        summary = run_batch(
            source, log, engine, of=OF, total=count_rows(source, log, OF), on_row=lambda: steps.append(None)
        )
    assert engine.asked == [5, 6, 7, 8, 9]
    assert len(steps) == 9
    assert sorted(line["row"] for line in outcome(out)) == [*range(1, 10)]
    assert (summary.resumed, summary.answered, summary.failed) == (4, 8, 1)
    run(source, out, engine)
    assert len(engine.asked) == 5


def test_rows_may_be_done_in_any_order(tmp_path: Path) -> None:
    class Backwards(Echo):
        def answers(self, rows: Iterable[Row]) -> Iterator[tuple[Row, dict[str, Any]]]:
            return super().answers(reversed([*rows]))

    source, out = BatchInput(rows_file(tmp_path, 6)), tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(source, out, Backwards(stop_after=2))
    assert [line["row"] for line in outcome(out)] == [6, 5]
    engine = Echo()
    run(source, out, engine)
    assert engine.asked == [1, 2, 3, 4]


def test_rows_that_failed_are_asked_again_when_told_to(tmp_path: Path) -> None:
    path, out = rows_file(tmp_path, 4, bad=(2,)), tmp_path / "out.jsonl"
    run(BatchInput(path), out, Echo())
    rows_file(tmp_path, 4)
    engine = Echo()
    summary = run(BatchInput(path), out, engine, retry_failed=True)
    assert engine.asked == [2]
    assert (summary.answered, summary.failed, summary.resumed) == (4, 0, 3)
    assert sorted(line["row"] for line in outcome(out)) == [1, 2, 3, 4]


@pytest.mark.parametrize("change", ["row", "options", "bundle"])
def test_an_output_of_something_else_is_refused(change: str, tmp_path: Path) -> None:
    path, out = rows_file(tmp_path, 4), tmp_path / "out.jsonl"
    run(BatchInput(path), out, Echo())
    content = out.read_bytes()
    of = {"options": asked_of("0" * 64, AskOptions(seed=1)), "bundle": asked_of("1" * 64, AskOptions())}.get(change, OF)
    if change == "row":
        path.write_text(path.read_text().replace(QUESTIONS[1], "what else?", 1))
    with pytest.raises(BadInput, match=f"holds {1 if change == 'row' else 4} rows that are not of this input"):
        run(BatchInput(path), out, Echo(), of)
    assert out.read_bytes() == content


def test_more_rows_or_images_are_answered_beside_the_old_ones(tmp_path: Path) -> None:
    path, out = rows_file(tmp_path, 3), tmp_path / "out.jsonl"
    run(BatchInput(path), out, Echo())
    rows_file(tmp_path, 5)
    engine = Echo()
    run(BatchInput(path), out, engine)
    assert engine.asked == [4, 5]


@pytest.mark.parametrize(
    ("content", "says"), [("", "holds no rows"), ("\n\n", "holds no rows"), ("a,b\n1,2\n", "no other line is a row")]
)
def test_an_input_without_a_single_row(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(BadInput, match=says):
        run(BatchInput(path), tmp_path / "out.jsonl", Echo())
    assert not (tmp_path / "out.jsonl").exists()


def test_answers_are_those_of_ask_and_failures_are_rows(tmp_path: Path) -> None:
    path, out = rows_file(tmp_path, 6), tmp_path / "out.jsonl"
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    more = [
        {"image": "broken.png", "question": "what is the total?"},
        {"image": "missing.png", "question": "what is the total?"},
        {"images": ["page1.png", "page2.png"], "question": "which is larger?"},
        {"image": "page1.png", "question": "what is <image>?"},
        {"image": "page1.png", "question": "word " * 2000},
    ]
    with path.open("a") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in more))
    source = BatchInput(path)
    answerer = Answerer(NANO, AskOptions(), str(source.root))
    assert run(source, out, LocalEngine(answerer)).failed == 5
    lines = {line["row"]: line for line in outcome(out)}
    pipeline = Pipeline.load(threads=1)
    for row in list(source)[:6]:
        plain = pipeline.ask(tmp_path / row.images[0], row.question).to_json()
        assert {key: lines[row.number][key] for key in ("answer", "tokens", "boxes", "tiles")} == {
            key: plain[key] for key in ("answer", "tokens", "boxes", "tiles")
        }
    for number, says in zip(
        range(7, 12), ("broken.png", "does not exist", "1 image", "<image>", "characters|tokens"), strict=True
    ):
        assert any(word in lines[number]["error"] for word in says.split("|")), lines[number]
        assert lines[number]["fix"]


def test_a_row_beyond_the_budget_fails_and_the_next_one_does_not(tmp_path: Path) -> None:
    from PIL import Image

    rows_file(tmp_path, 1)
    Image.new("L", (9000, 9000)).save(tmp_path / "page0.png", "WEBP")  # which is always decoded whole
    loading = Loading(None, "cpu", 1, 300 << 20, verify=False)
    for name in ("page2.png", "page3.png"):
        (tmp_path / name).unlink()
    source, out = BatchInput(tmp_path, "what is the total?"), tmp_path / "out.jsonl"
    run(source, out, LocalEngine(Answerer(loading, AskOptions(), str(source.root))))
    large, small = outcome(out)
    assert "preprocess needs" in large["error"]
    assert small["id"] == "page1.png"
    assert small["memory"]["planned_peak_bytes"] <= 300 << 20


def test_killed_at_random_moments_no_row_is_lost_or_doubled(tmp_path: Path) -> None:
    count, kills = 60, 3
    path, out = rows_file(tmp_path, count, bad=(11,)), tmp_path / "out.jsonl"
    command = [*VLM_EDGE, "batch", str(path), str(out), "--threads", "1", "--json"]
    draw = random.Random(7)
    landed = 0
    for _ in range(kills):
        begun = out.stat().st_size if out.exists() else 0
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **in_checkout(tmp_path)
        )
        deadline = time.monotonic() + 60
        while (
            process.poll() is None
            and time.monotonic() < deadline
            and (out.stat().st_size if out.exists() else 0) <= begun
        ):
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.15))
        landed += process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert landed >= 2, "most runs had ended before they were killed"
    done = subprocess.run(command, capture_output=True, check=False, **in_checkout(tmp_path))
    assert done.returncode == 1, done.stderr  # row 11 is no JSON
    report = json.loads(done.stdout)
    assert (report["rows"], report["answered"], report["failed"]) == (count, count - 1, 1)
    lines = outcome(out)
    assert sorted(line["row"] for line in lines) == [*range(1, count + 1)]
    at_once = tmp_path / "at_once.jsonl"
    source = BatchInput(path)
    run(source, at_once, LocalEngine(Answerer(NANO, AskOptions(), str(source.root))))
    told = {line["row"]: (line["id"], line.get("answer")) for line in outcome(at_once)}
    assert {line["row"]: (line["id"], line.get("answer")) for line in lines} == told

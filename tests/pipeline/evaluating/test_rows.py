"""Data files are read strictly, errors name file and line, and a log survives being cut short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlm_edge.errors import BadInput
from vlm_edge.pipeline.evaluating.metrics import RowOutcome
from vlm_edge.pipeline.evaluating.rows import BadLine, EvalRow, OutcomeLog, read_rows, row_hash

GOOD = {"image": "page.png", "question": "what is the total?", "answer": "12.50"}


def write(folder: Path, *lines: dict[str, Any] | str) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return path


def outcome(identity: str, **other: Any) -> RowOutcome:
    return RowOutcome(identity, "row", "page.png", "é?", "value", ("long",), "1", timings_ms={"vision": 1.5}, **other)


def test_rows_come_out_as_written(tmp_path: Path) -> None:
    full = GOOD | {"task": "value", "tiles": [[0, 0, 112, 112]], "stratum": ["long", "12px"]}
    rows = read_rows(write(tmp_path, GOOD, "", full))
    assert rows[0] == EvalRow("page.png", "what is the total?", "12.50")
    assert rows[1].tiles == ((0, 0, 112, 112),)
    assert rows[1].stratum == ("long", "12px")
    assert read_rows(tmp_path / "data.jsonl", limit=1) == rows[:1]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ("{", "not valid JSON"),
        ('["a"]', ""),
        ("17", ""),
        ({"image": "a", "question": "b"}, "answer"),
        (GOOD | {"answer": 3}, "answer"),
        (GOOD | {"anser": "x"}, "anser"),
        (GOOD | {"image": " "}, "image is empty"),
        (GOOD | {"question": ""}, "question is empty"),
        (GOOD | {"stratum": "long"}, "stratum"),
        (GOOD | {"tiles": [[1, 2, 3]]}, "tiles"),
        (GOOD | {"tiles": [[1, 2, 3, 4.5]]}, "tiles"),
        (GOOD | {"tiles": [[5, 0, 5, 9]]}, "tile"),
        (GOOD | {"tiles": [[-1, 0, 5, 9]]}, "tile"),
        (GOOD | {"answer": "<box>1,2,3</box>"}, "damaged box"),
        (GOOD | {"answer": "<box>3,3,1,1</box>"}, "damaged box"),
        (GOOD | {"answers": ["12.5"]}, "both answer and answers are given"),
        (GOOD | {"box": [0, 0, 5, 5]}, "both answer and box are given"),
        ({"image": "a", "question": "b", "answers": []}, "no answer is given"),
        ({"image": "a", "question": "b", "answers": ["<box>1</box>"]}, "damaged box"),
        ({"image": "a", "question": "b", "box": [5, 0, 5, 9]}, "box"),
        ({"image": "a", "question": "b", "box": [0, 0, 1.5, 9]}, "box"),
        (GOOD | {"images": ["b.png"]}, "both image and images are given"),
        ({"images": ["a.png", " "], "question": "b", "answer": "c"}, "images is empty"),
        (GOOD | {"metric": "anlz"}, "metric has no value 'anlz'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: dict[str, Any] | str, says: str) -> None:
    path = write(tmp_path, GOOD, "", bad, GOOD)
    with pytest.raises(BadInput) as failure:
        read_rows(path)
    assert f"{path}:3: " in failure.value.message
    assert says in failure.value.message
    assert failure.value.remedy


def test_images_answers_metric_and_box(tmp_path: Path) -> None:
    several = {"images": ["a.png", "b.png"], "question": "same?", "answers": ["yes", "they are"], "metric": "anls"}
    boxed = {"image": "a.png", "question": "where?", "box": [1, 2, 30, 40]}
    first, second = read_rows(write(tmp_path, several, boxed))
    assert (first.paths, first.accepted, first.metric) == (("a.png", "b.png"), ("yes", "they are"), "anls")
    assert (second.paths, second.accepted, second.box) == (("a.png",), ("",), (1, 2, 30, 40))


def test_bad_lines_are_told_and_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, "{", GOOD | {"anser": "x"}, "", GOOD | {"question": "second?"})
    with path.open("ab") as stream:
        stream.write(b'\xff\n{"image": "a.png"}\n' + json.dumps(GOOD | {"question": "third?"}).encode())
    bad: list[BadLine] = []
    rows = read_rows(path, on_bad=bad.append)
    assert [row.question for row in rows] == [GOOD["question"], "second?", "third?"]
    assert [line.number for line in bad] == [2, 3, 6, 7]
    assert [line.problem.split(":")[0] for line in bad] == ["not valid JSON", "anser", "not UTF-8", "question is empty"]
    told: list[BadLine] = []
    assert len(read_rows(path, limit=2, on_bad=told.append)) == 2
    assert [line.number for line in told] == [2, 3]
    with pytest.raises(BadInput, match=r":2: "):
        read_rows(path)


def test_a_file_of_bad_lines_alone_is_refused(tmp_path: Path) -> None:
    bad: list[BadLine] = []
    with pytest.raises(BadInput, match="no row that can be asked"):
        read_rows(write(tmp_path, "{", "7"), on_bad=bad.append)
    assert [line.number for line in bad] == [1, 2]


def test_the_same_failure_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for _ in range(2):
        log = OutcomeLog(path)
        log.add(outcome("a", error="damaged"))
        log.add(outcome("a", error="damaged"))
    assert len(path.read_text("utf-8").splitlines()) == 1
    OutcomeLog(path).add(outcome("a", error="missing"))
    OutcomeLog(path).add(outcome("a", answer="1"))
    assert len(path.read_text("utf-8").splitlines()) == 3
    assert OutcomeLog(path).get("a") == outcome("a", answer="1")


def test_a_misspelt_key_has_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as failure:
        read_rows(write(tmp_path, GOOD | {"quesion": "x"}))
    assert "'question'" in failure.value.remedy


def test_rows_without_tiles_are_refused_where_they_are_wanted(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD | {"tiles": []}, GOOD)
    assert len(read_rows(path)) == 2
    with pytest.raises(BadInput, match=r":2: the row has no tiles"):
        read_rows(path, need_tiles=True)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"data\.jsonl"):
        read_rows(path)
    with pytest.raises(BadInput):
        read_rows(tmp_path / "absent.jsonl")
    with pytest.raises(BadInput, match="--limit 0"):
        read_rows(path, limit=0)


def test_a_hash_tells_rows_apart() -> None:
    row = EvalRow("a.png", "b", "c")
    assert row_hash(row) == row_hash(EvalRow("a.png", "b", "c"))
    others = [EvalRow("a.png", "b", "d"), EvalRow("a.png", "b", "c", tiles=()), EvalRow("a.png", "bc", "")]
    assert len({row_hash(each) for each in (row, *others)}) == 4


def test_a_log_keeps_outcomes_and_forgets_errors(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.jsonl"
    log = OutcomeLog(path)
    log.add(outcome("a", answer="ü", right=True, iou=0.75))
    log.add(outcome("b", error="damaged"))
    again = OutcomeLog(path)
    assert again.get("a") == outcome("a", answer="ü", right=True, iou=0.75)
    assert again.get("b") is None
    assert len(path.read_text("utf-8").splitlines()) == 2


@pytest.mark.parametrize("cut", [1, 7, 20, 45, -2])
def test_a_line_cut_short_is_dropped(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "log.jsonl"
    log = OutcomeLog(path)
    log.add(outcome("a"))
    whole = path.read_bytes()
    log.add(outcome("b"))
    path.write_bytes(whole + path.read_bytes()[len(whole) :][:cut])
    again = OutcomeLog(path)
    assert path.read_bytes() == whole
    again.add(outcome("b"))
    assert OutcomeLog(path).get("b") == outcome("b")


def test_a_last_line_without_its_break_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    OutcomeLog(path).add(outcome("a"))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    OutcomeLog(path).add(outcome("b"))
    assert [OutcomeLog(path).get(name) for name in "ab"] == [outcome("a"), outcome("b")]


@pytest.mark.parametrize(
    "content",
    [b'{"image": "page.png", "question": "?", "answer": "1"}\n', b"notes", b"\xff\n", b'{"id": "a"}', b'{"id": "a"}\n'],
)
def test_a_file_that_is_no_log_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"mine\.txt"):
        OutcomeLog(path)
    assert path.read_bytes() == content

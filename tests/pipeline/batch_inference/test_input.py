"""Rows of a batch: what a line may be, and that a bad one costs no other row."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vlm_edge.errors import BadInput
from vlm_edge.pipeline.batch_inference.input import MAX_LINE_BYTES, BatchInput, Row

GOOD = '{"image": "a.png", "question": "how many?"}'


def rows(folder: Path, *lines: str | bytes, question: str = "") -> list[Row]:
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return list(BatchInput(path, question))


def test_lines_keep_their_number_and_id(tmp_path: Path) -> None:
    found = rows(
        tmp_path,
        GOOD,
        "",
        "  ",
        '{"images": ["a.png", "b/c.png"], "question": "same?", "id": "x"}',
        GOOD[:-1] + ', "id": 7}',
    )
    assert [(row.number, row.id, row.images, row.question) for row in found] == [
        (1, "1", ("a.png",), "how many?"),
        (4, "x", ("a.png", "b/c.png"), "same?"),
        (5, "7", ("a.png",), "how many?"),
    ]
    assert len({row.identity for row in found}) == 3


def test_a_question_for_rows_without_one(tmp_path: Path) -> None:
    found = rows(tmp_path, '{"image": "a.png"}', GOOD, question="what?")
    assert [row.question for row in found] == ["what?", "how many?"]


@pytest.mark.parametrize(
    ("line", "says", "fix"),
    [
        ("{", "not valid JSON", "one a line"),
        ("7", "should be an object", ""),
        ("[" * 100_000, "not valid JSON", ""),
        (b'{"image": "\xff"}', "not valid JSON", ""),
        ('{"question": "how many?"}', "either image or images", ""),
        ('{"image": "a.png", "images": ["b.png"], "question": "?"}', "either image or images", ""),
        ('{"image": "a.png"}', "has no question", "--question"),
        ('{"image": "a.png", "question": "  "}', "has no question", "--question"),
        ('{"image": 7, "question": "?"}', "image: input should be", ""),
        ('{"imgae": "a.png", "question": "?"}', "imgae", "'image'"),
        ('{"image": "..", "question": "?"}', "'..' is no file", ""),
        ('{"image": "a\\u0000b", "question": "?"}', "no file", ""),
        ('{"image": "' + 5000 * "a" + '", "question": "?"}', "no file", ""),
        ('{"images": ["a.png", " "], "question": "?"}', "' ' is no file", ""),
        ('{"image": "' + MAX_LINE_BYTES * "a" + '", "question": "?"}', "longer than 1 MiB", ""),
    ],
)
def test_a_bad_line_is_a_row_that_says_why(line: str | bytes, says: str, fix: str, tmp_path: Path) -> None:
    first, bad, last = rows(tmp_path, GOOD, line, GOOD)
    assert (first.problem, last.problem) == ("", "")
    assert (bad.number, bad.id, last.number) == (2, "2", 3)
    assert bad.problem.startswith(f"{tmp_path / 'rows.jsonl'}:2: ")
    assert says in bad.problem
    assert fix in bad.fix
    assert len(bad.problem) < 400


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_would_never_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert "is no file" in rows(tmp_path, '{"image": "pipe.png", "question": "?"}')[0].problem
    with pytest.raises(BadInput, match="read more than once"):
        list(BatchInput(tmp_path / "pipe.png", "?"))


def test_a_byte_order_mark_and_a_missing_last_line_break_are_fine(tmp_path: Path) -> None:
    assert [row.problem for row in rows(tmp_path, b"\xef\xbb\xbf" + GOOD.encode(), GOOD)] == ["", ""]


def test_a_folder_gives_its_images_in_order(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", ".hidden.png", "notes.txt", "c.webp"):
        (tmp_path / name).touch()
    found = list(BatchInput(tmp_path, "what?"))
    assert [(row.number, row.id, row.images) for row in found] == [
        (1, "a.jpg", ("a.jpg",)), (2, "b.PNG", ("b.PNG",)), (3, "c.webp", ("c.webp",)),
    ]  # fmt: skip
    before = {row.id: row.identity for row in found}
    (tmp_path / "aa.png").touch()
    assert {row.id: row.identity for row in BatchInput(tmp_path, "what?")}.items() > before.items()


def test_a_folder_needs_a_question_and_a_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no question is given") as caught:
        list(BatchInput(tmp_path))
    assert "--question" in caught.value.remedy
    with pytest.raises(BadInput, match="cannot be read"):
        list(BatchInput(tmp_path / "nothing.jsonl"))


def test_rows_are_read_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(GOOD + "\n")
    reading = iter(BatchInput(path))
    next(reading)
    with path.open("a") as stream:
        stream.write(json.dumps({"image": "z.png", "question": "?"}) + "\n")
    assert [row.images for row in BatchInput(path)] == [("a.png",), ("z.png",)]

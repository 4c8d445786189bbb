"""The output of a batch: cut anywhere, it is what it was before the line that was cut; and nobody else's file is touched."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from vlm_edge.errors import BadInput
from vlm_edge.pipeline.batch_inference import log as batch_log
from vlm_edge.pipeline.batch_inference.log import BatchLog

KEYS = [0, 7, (1 << 64) - 1]


def written(path: Path, keys: list[int] = KEYS, **content: Any) -> bytes:
    with BatchLog.open(path) as log:
        for number, key in enumerate(keys, start=1):
            log.add(number, key, {"id": str(number), "answer": "forty-two €", **content})
    return path.read_bytes()


def test_rows_are_there_again(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    lines = [json.loads(line) for line in written(path).splitlines()]
    assert [(line["row"], int(line["key"], 16), line["answer"]) for line in lines] == [
        (number, key, "forty-two €") for number, key in enumerate(KEYS, start=1)
    ]
    with BatchLog.open(path) as log:
        assert (log.done, log.failed) == (3, 0)
        assert [log.holds(key) for key in (*KEYS, 1, 8)] == [True, True, True, False, False]


def test_cut_at_any_byte_the_whole_lines_before_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    content = written(path)
    for end in range(1, len(content) + 1):
        path.write_bytes(content[:end])
        whole = content[: content.rfind(b"\n", 0, end) + 1]
        with BatchLog.open(path) as log:
            assert log.done == whole.count(b"\n")
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [b"notes\n", b"notes", b'{"image": "a.png"}\n', b'{"row": 1}\n', b'{"row": 1, "key": 7}\n', b'{"row": 1, "key": "xyz"}\n',
     b'{"row": 1, "key": "\n', b"\x89PNG\r\n", b'{"row": 1, "key": "07"}\n{"row": 2, "key": "07"}\n', b"\n"],
)  # fmt: skip
def test_another_file_is_refused_and_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught, BatchLog.open(path):
        pass
    assert "another OUT" in caught.value.remedy
    assert path.read_bytes() == content


def test_only_one_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with BatchLog.open(path), pytest.raises(BadInput, match="another batch"), BatchLog.open(path):
        pass


def test_failed_rows_are_taken_out_where_they_are_to_be_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    written(path, [1, 2])
    written(path, [3], error="damaged", fix="copy it again")
    with BatchLog.open(path) as log:
        assert (log.done, log.failed) == (3, 1)
    with BatchLog.open(path, retry_failed=True) as log:
        assert (log.done, log.failed, log.holds(3)) == (2, 0, False)
        log.add(3, 3, {"answer": "x"})
        with pytest.raises(BadInput, match="another batch"), BatchLog.open(path):
            pass
    assert [json.loads(line).get("answer") for line in path.read_text().splitlines()] == ["forty-two €"] * 2 + ["x"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.jsonl"
    before = written(path, [1])

    def half(stream: Any, line: bytes) -> None:
        stream.write(line[: len(line) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with BatchLog.open(path) as log:
        with monkeypatch.context() as patched:
            patched.setattr(batch_log, "_write", half)
            with pytest.raises(BadInput, match="No space left") as caught:
                log.add(2, 2, {"answer": "x"})
        assert "make room" in caught.value.remedy
        assert path.read_bytes() == before
        log.add(2, 2, {"answer": "x"})
    assert path.read_bytes().startswith(before)
    assert path.read_bytes().count(b"\n") == 2


def test_half_a_character_is_written_as_something(tmp_path: Path) -> None:
    assert b"answer" in written(tmp_path / "out.jsonl", [1], answer="\ud800")


@pytest.mark.parametrize("place", ["missing/out.jsonl", "."])
def test_a_place_that_cannot_be_written(place: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be written"), BatchLog.open(tmp_path / place):
        pass


def test_nothing_asked_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match="bad input"), BatchLog.open(path):
        raise ValueError("bad input")
    assert not path.exists()

"""Calibration files and folders: what is read, and the line that is to blame for what is not."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.quantizable import write_lines
from vlm_edge.core.resources import resource_dir
from vlm_edge.errors import BadInput
from vlm_edge.quant.calibrate import DESCRIBE, digest, read_samples


def image(path: Path) -> Path:
    Image.new("RGB", (4, 4)).save(path)
    return path


def test_a_file_s_rows_in_order_with_images_beside_it(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    rows = [{"text": "one"}, "", {"text": "two", "image": "a.png", "answer": "yes"}, {"text": "three"}]
    found = read_samples(write_lines(tmp_path / "data.jsonl", rows), limit=2)
    assert [(s.text, s.image, s.answer) for s in found] == [("one", None, ""), ("two", tmp_path / "a.png", "yes")]
    assert found[1].where.endswith("data.jsonl:3")


BAD_LINES: dict[str, tuple[Any, str]] = {
    "no JSON": ("{text: 1}", r"data\.jsonl:2: not valid JSON"),
    "a list": ("[1]", r"data\.jsonl:2"),
    "no text": ({"image": "a.png"}, r"data\.jsonl:2: text"),
    "empty text": ({"text": "  "}, r"data\.jsonl:2: text is empty"),
    "number": ({"text": 5}, r"data\.jsonl:2: text"),
    "unknown key": ({"text": "x", "imgae": "a.png"}, r"data\.jsonl:2: imgae"),
    "missing image": ({"text": "x", "image": "b.png"}, r"data\.jsonl:2: there is no image"),
    "deep": ("[" * 100_000, r"data\.jsonl:2"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_the_line_is_named(name: str, tmp_path: Path) -> None:
    line, message = BAD_LINES[name]
    path = write_lines(tmp_path / "data.jsonl", [{"text": "fine"}, line])
    with pytest.raises(BadInput, match=message):
        read_samples(path, limit=10)


def test_the_line_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(b'{"text": "a"}\n{"text": "b"}\n{"text": "\xff"}\n')
    with pytest.raises(BadInput, match=r"data\.jsonl:3: not UTF-8"):
        read_samples(tmp_path / "data.jsonl", limit=10)


def test_what_the_system_does_not_let_be_read_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x" * 300, "nowhere.jsonl"):
        with pytest.raises(BadInput, match=f"{name[:12]}.* cannot be read"):
            read_samples(tmp_path / name, limit=10)
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(Path, "iterdir", forbidden)
    with pytest.raises(BadInput, match="locked cannot be read"):
        read_samples(tmp_path / "locked", limit=10)


def forbidden(path: Path) -> Iterator[Path]:
    """As for a folder that this user may not list: root, who runs some tests, may list them all."""
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


def test_an_image_that_went_away_is_named_with_its_line(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    found = read_samples(write_lines(tmp_path / "data.jsonl", [{"text": "one", "image": "a.png"}]), limit=1)
    (tmp_path / "a.png").unlink()
    with pytest.raises(BadInput, match=r"data\.jsonl:1: .*a\.png"):
        digest(found)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_samples(content: str, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(content)
    with pytest.raises(BadInput, match="holds no calibration samples"):
        read_samples(tmp_path / "data.jsonl", limit=10)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_samples(tmp_path / "none.jsonl", limit=10)


def test_a_folder_of_images_and_texts(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    image(tmp_path / "b.JPG")
    (tmp_path / "a.txt").write_text("what is this?")
    (tmp_path / "c.txt").write_text("only text")
    (tmp_path / "notes.md").write_text("no sample")
    found = read_samples(tmp_path, limit=10)
    assert [(s.text, s.image and s.image.name) for s in found] == [
        ("what is this?", "a.png"), (DESCRIBE, "b.JPG"), ("only text", None),
    ]  # fmt: skip


def test_a_folder_with_tables_gives_their_rows(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    write_lines(tmp_path / "data.jsonl", [{"text": "x", "image": "a.png"}])
    assert [s.text for s in read_samples(tmp_path, limit=10)] == ["x"]


def test_empty_folders_and_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no calibration samples"):
        read_samples(tmp_path, limit=10)
    (tmp_path / "c.txt").write_text(" ")
    with pytest.raises(BadInput, match=r"c\.txt is empty"):
        read_samples(tmp_path, limit=10)


def test_the_digest_sees_texts_answers_and_pixels(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    rows = [{"text": "x", "image": "a.png", "answer": "y"}]
    path = write_lines(tmp_path / "data.jsonl", rows)
    first = digest(read_samples(path, limit=10))
    assert digest(read_samples(path, limit=10)) == first
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    second = digest(read_samples(path, limit=10))
    write_lines(path, [{**rows[0], "answer": "z"}])
    assert len({first, second, digest(read_samples(path, limit=10))}) == 3


def test_the_set_that_ships_is_mixed_from_its_beginning() -> None:
    found = read_samples(resource_dir("calibration") / "quantize", limit=12)
    assert 6 <= sum(sample.image is not None for sample in found) <= 9
    assert all(sample.answer for sample in found)

"""vlm-edge batch: summary, exit codes, and what is refused before anything is loaded."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from vlm_edge.cli.main import execute
from vlm_edge.core.resources import resource_dir
from vlm_edge.pipeline.answering.run import Pipeline

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    folder = tmp_path / "pages"
    folder.mkdir()
    for name in ("page1.png", "page2.png"):
        shutil.copyfile(resource_dir("calibration") / "pages" / name, folder / name)
    return folder


def test_a_folder_and_one_question(pages: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ["batch", str(pages), str(out), "--question", "what is the total?", "--threads", "1"]
    assert execute([*arguments, "--json"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert printed.err == ""
    assert (report["bundle"], report["device"], report["engine"], report["workers"]) == ("nano", "cpu", "local", 1)
    assert (report["rows"], report["answered"], report["failed"], report["resumed"]) == (2, 2, 0, 0)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["page1.png", "page2.png"]
    assert all(row["answer"] and not {"bundle", "device", "error"} & set(row) for row in rows)
    assert execute(arguments) == 0
    printed = capsys.readouterr()
    assert "2 of 2 rows are there already" in printed.err
    lines = [" ".join(line.split()) for line in printed.out.splitlines()]
    assert {"rows 2", "answered 2", "failed 0", "from earlier runs 2"} <= set(lines)
    assert len(out.read_text().splitlines()) == 2


def test_a_failed_row_is_exit_code_1_and_can_be_asked_again(pages: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "out.jsonl"
    good = (pages / "page2.png").read_bytes()
    (pages / "page2.png").write_bytes(good[:100])
    arguments = ["batch", str(pages), str(out), "--question", "what is the total?", "--threads", "1"]
    assert execute(arguments) == 1
    assert "failed: row 2 (page2.png): " in capsys.readouterr().err
    (pages / "page2.png").write_bytes(good)
    assert execute(arguments) == 1
    assert "--retry-failed" in capsys.readouterr().err
    assert execute([*arguments, "--retry-failed"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["id"], "error" in row) for row in rows] == [("page1.png", False), ("page2.png", False)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pages", "out.jsonl"], "no question is given"),
        (["nowhere.jsonl", "out.jsonl"], "cannot be read"),
        (["rows.jsonl", "rows.jsonl", "--question", "?"], "is the input itself"),
        (["rows.jsonl", "pages", "--question", "?"], "cannot be written"),
        (["rows.jsonl", "out.jsonl", "--engine", "spark"], "--engine has no value 'spark'"),
        (["rows.jsonl", "out.jsonl", "--engine", "ray", "--workers", "0"], "--workers 0"),
        (["rows.jsonl", "out.jsonl", "--tiling", "gird"], "--tiling has no value"),
        (["rows.jsonl", "out.jsonl", "--bundle", "nowhere"], "is not a folder"),
        (["rows.jsonl", "out.jsonl"], "has no question"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    arguments: list[str], says: str, pages: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(pages.parent)
    monkeypatch.setattr(Pipeline, "load", lambda *_, **__: pytest.fail("loaded"))
    Path("rows.jsonl").write_text('{"image": "pages/page1.png"}\n')
    assert execute(["batch", *arguments]) == 2
    error, fix = capsys.readouterr().err.splitlines()
    assert says in error
    assert fix.startswith("fix: ")
    assert not Path("out.jsonl").exists()


def test_without_ray_the_extra_is_named(pages: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "ray" else found(name, *rest))
    assert execute(["batch", str(pages), str(pages / "out.jsonl"), "--question", "?", "--engine", "ray"]) == 2
    assert "pip install 'vlm-edge[ray]'" in capsys.readouterr().err


def test_help_says_how_rows_run_and_has_an_example(capsys: Captured) -> None:
    assert execute(["batch", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("Usage: vlm-edge batch [OPTIONS] INPUT OUT.jsonl")
    assert "rows run one after another" in text
    assert "Example: vlm-edge batch questions.jsonl answers.jsonl" in text

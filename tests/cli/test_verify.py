"""vlm-edge verify: what it prints, and its exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vlm_edge.cli.main import execute
from vlm_edge.core.bundle import Bundle
from vlm_edge.pipeline.embedded import NANO


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    return Path(shutil.copytree(NANO, tmp_path / "copy"))


def test_a_table_on_stdout_and_steps_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["verify", "nano", "--threads", "1"]) == 0
    shown = capsys.readouterr()
    assert shown.err.splitlines() == ["hash the files", "check vision/cpu", "check llm/cpu", "check saliency"]
    lines = [line.split(None, 3) for line in shown.out.splitlines()]
    assert ["load", "vision/cpu", "yes"] in [line[:3] for line in lines]
    assert ["parity", "vision/cpu", "not"] in [line[:3] for line in lines]
    assert "holds no references" in shown.out


def test_json_is_one_object_and_a_no_ends_with_1(nano: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray((nano / "tokenizer.json").read_bytes())
    content[7] ^= 1
    (nano / "tokenizer.json").write_bytes(content)
    assert execute(["verify", str(nano), "--json", "--quiet", "--report"]) == 1
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert (report["ok"], report["name"], report["bundle"]) == (False, "nano", str(nano))
    wrong = [check for check in report["checks"] if check["ok"] is False]
    assert [check["name"] for check in wrong] == ["file tokenizer.json"]
    assert wrong[0]["value"] != wrong[0]["limit"]
    assert json.loads((nano / "reports/verify.json").read_text()) == report
    error, fix = shown.err.splitlines()
    assert error.startswith("error: the check of file tokenizer.json says no")
    assert fix.startswith("fix: copy the bundle again")


@pytest.mark.parametrize(
    "words", [["no-such-folder"], ["nano", "no-such-folder"], ["nano", "--threads", "0"], ["nano", "--revision"]]
)
def test_what_cannot_be_checked_ends_with_2(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert execute(["--quiet", "verify", *words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    error, fix = shown.err.splitlines()
    assert error.startswith("error: ")
    assert fix.startswith("fix: ")


def test_graphs_that_are_none_are_named(tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["--quiet", "verify", str(tiny_bundle.root)]) == 1
    shown = capsys.readouterr()
    assert "and 1 more" in shown.err
    assert [line.split()[1] for line in shown.out.splitlines() if line.startswith("load")] == ["vision/cpu", "llm/cpu"]


def test_the_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["verify", "--help"]) == 0
    assert "Example: vlm-edge verify out/" in capsys.readouterr().out

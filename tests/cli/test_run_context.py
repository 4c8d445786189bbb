"""run --context: a text beside the image, as it is or summarised, and what cannot be one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlm_edge.cli.main import execute
from vlm_edge.core.resources import resource_dir

RECEIPT = resource_dir("calibration") / "pages" / "receipt.png"


def test_a_short_context_stands_before_the_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context = tmp_path / "notes.txt"
    context.write_text("total: 12.50")
    arguments = ["run", str(RECEIPT), "what is the total?", "--context", str(context), "--json"]
    assert execute(arguments) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert printed.err == ""
    assert (told["context"]["file"], told["context"]["summarised"], told["context"]["calls"]) == (
        str(context),
        False,
        0,
    )
    assert execute([*arguments[:3], "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert "context" not in plain
    assert told["tokens"]["prompt"] - plain["tokens"]["prompt"] >= told["context"]["tokens"]


def test_a_long_context_is_summarised_within_its_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context = tmp_path / "notes.txt"
    context.write_text("".join(f"key{i}: value {i}.\n" for i in range(150)))
    arguments = ["run", str(RECEIPT), "what is the total?", "--context", str(context), "--context-budget", "100"]
    assert execute([*arguments, "--json"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["context"]["summarised"]
    assert told["context"]["tokens_in_prompt"] <= 100 == told["context"]["budget_tokens"]
    assert told["context"]["calls"] > 1
    assert "the text was summarised to" in printed.err
    memory = told["memory"]
    assert memory["planned_peak_bytes"] > 100 << 20


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (b"", [], "is empty"),
        (b"\x00\x01", [], "is binary"),
        (b"fine", ["--context-budget", "5"], "--context-budget 5 is not allowed"),
        (b"fine", ["--context-budget", "760"], "--context-budget 760 does not fit"),
        (b"fine <image>", [], "the context holds the control token"),
        (None, ["--context-budget", "50"], "--context, which is not given"),
    ],
)
def test_contexts_that_cannot_be(
    content: bytes | None, options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = []
    if content is not None:
        (tmp_path / "notes.txt").write_bytes(content)
        given = ["--context", str(tmp_path / "notes.txt")]
    assert execute(["run", str(RECEIPT), "what is the total?", *given, *options]) == 2
    error, fix = capsys.readouterr().err.splitlines()
    assert says in error
    assert fix.startswith("fix: ")

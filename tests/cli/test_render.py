"""What stands on a terminal: text as it is, whatever Rich could read into it."""

from __future__ import annotations

import pytest

from tests.cli.terminal import Terminal
from tests.cli.test_doctor import HEALTHY, having
from vlm_edge.cli import render
from vlm_edge.cli.main import execute

TRICKY = ("pip install 'vlm-edge[cpu]'", "[/x]", "[bold]", ":smile:", "ends with \\")


def test_cells_headings_and_titles_are_no_markup(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", terminal.stream)
    render.table("about [/title]", ("[head]",), [(cell,) for cell in TRICKY])
    shown = terminal.text()
    for text in ("about [/title]", "[head]", *TRICKY):
        assert text in shown


def test_the_title_of_a_progress_bar_is_no_markup(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", terminal.stream)
    with render.progress("nano: [/x].jsonl", 2) as step:
        step()
        step()
    shown = terminal.text()
    assert "nano: [/x].jsonl" in shown
    assert "100%" in shown


def test_commands_of_doctor_can_be_copied_from_a_terminal(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_edge.pipeline.machine.examine", lambda: having(HEALTHY, onnxruntime=None))
    monkeypatch.setattr("sys.stdout", terminal.stream)
    assert execute(["doctor"]) == 1
    lines = terminal.text().splitlines()
    assert "run: pip install 'vlm-edge[cpu]'" in lines
    assert "export, quantize: pip install 'vlm-edge[cpu,build]'" in lines

"""Standard streams that are closed, full, or read by somebody who has gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.program import VLM_EDGE, in_checkout
from vlm_edge.cli.main import execute
from vlm_edge.core.resources import resource_dir
from vlm_edge.errors import DoesNotFit

PAGE = str(resource_dir("calibration") / "pages/receipt.png")
TOTAL = "what is the total?"
COMMANDS = {
    "nothing": (),
    "help": ("--help",),
    "version": ("--version",),
    "help of a command": ("run", "--help"),
    "run": ("run", PAGE, TOTAL),
    "run --json": ("run", PAGE, TOTAL, "--json"),
    "info": ("info",),
    "doctor": ("doctor",),
    "doctor --json": ("doctor", "--json"),
}


@pytest.fixture
def abandoned() -> Iterator[int]:
    """The writing end of a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    with suppress(OSError):
        os.close(writing)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_with_141_when_its_reader_has_gone(
    name: str, abandoned: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = os.fdopen(abandoned, "w")
    monkeypatch.setattr("sys.stdout", stream)
    assert execute(COMMANDS[name]) == 141
    assert capsys.readouterr().err == ""
    with suppress(BrokenPipeError):
        stream.close()


def test_eval_too_ends_with_141(tmp_path: Path, abandoned: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"image": PAGE, "question": TOTAL, "answer": "1"}))
    stream = os.fdopen(abandoned, "w")
    monkeypatch.setattr("sys.stdout", stream)
    assert execute(["eval", str(data)]) == 141
    with suppress(BrokenPipeError):
        stream.close()


TOO_LONG = "x" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", TOO_LONG),
        ("plan", "nano", "--html", f"{TOO_LONG}.html"),
        ("run", "page.png", "q", "--explain", f"{TOO_LONG}.png"),
        ("run", "page.png", "q", "--saliency-model", TOO_LONG),
        ("batch", TOO_LONG, "out.jsonl"),
        ("batch", "rows.jsonl", TOO_LONG),
        ("recipes", "check", f"{TOO_LONG}.yaml"),
        ("profiles", "check", f"{TOO_LONG}.yaml"),
    ],
    ids=lambda words: words[0],
)
def test_a_name_that_the_file_system_does_not_take_is_no_unexpected_error(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("page.png")
    (tmp_path / "rows.jsonl").write_text('{"image": "page.png", "question": "q"}\n')
    assert execute(arguments) == 2
    error, fix = capsys.readouterr().err.splitlines()
    assert error.startswith("error: x")
    assert error.endswith("File name too long")
    assert fix == "fix: check the path, its permissions and the disk"


def test_memory_that_ran_out_is_no_unexpected_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("vlm_edge.pipeline.answering.preflight.find_bundle", fail)
    assert execute(["info"]) == DoesNotFit.exit_code
    error, fix = capsys.readouterr().err.splitlines()
    assert error == "error: memory ran out"
    assert fix.startswith("fix: free memory")


@pytest.mark.parametrize("name", ["help", "run --json"])
def test_the_interpreter_adds_nothing_while_it_exits(name: str, abandoned: int, tmp_path: Path) -> None:
    command = [*VLM_EDGE, *COMMANDS[name]]
    where = in_checkout(tmp_path)
    done = subprocess.run(command, stdout=abandoned, stderr=subprocess.PIPE, check=False, **where)
    assert (done.returncode, done.stderr) == (141, b"")


def test_what_was_registered_for_the_end_still_runs(tmp_path: Path) -> None:
    program = "import atexit, sys; atexit.register(print, 'the end'); sys.argv = ['vlm-edge', '--version']; "
    program += "from vlm_edge.cli.start import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, **in_checkout(tmp_path)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == ["the end"]


def test_an_error_that_nobody_reads_is_still_an_error(abandoned: int, tmp_path: Path) -> None:
    command = [*VLM_EDGE, "rnu"]
    where = in_checkout(tmp_path)
    done = subprocess.run(command, stdout=abandoned, stderr=abandoned, check=False, **where)
    assert done.returncode == 2


def shell(line: str, folder: Path, **streams: int) -> subprocess.CompletedProcess[str]:
    """Run `vlm-edge` with what stands after it, as a shell would."""
    command = ["bash", "-c", f'"$@" {line}', "bash", *VLM_EDGE]
    return subprocess.run(command, capture_output=True, text=True, check=False, **in_checkout(folder), **streams)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (f"run '{PAGE}' '{TOTAL}' >&-", "standard output is closed"),
        ("--help >&-", "standard output is closed"),
        (f"run '{PAGE}' '{TOTAL}' --json >/dev/full", "standard output cannot be written: No space left on device"),
        ("--help >/dev/full", "standard output cannot be written: No space left on device"),
        (f"run - '{TOTAL}' <&-", "standard input is closed"),
    ],
)
def test_streams_that_cannot_be_used_are_named(line: str, says: str, tmp_path: Path) -> None:
    done = shell(line, tmp_path)
    assert done.returncode == 2
    assert [text.split(":")[0] for text in done.stderr.splitlines()] == ["error", "fix"], done.stderr
    assert says in done.stderr.splitlines()[0]


@pytest.mark.parametrize(("arguments", "code"), [("--version", 0), ("rnu", 2)])
def test_without_standard_error_the_exit_code_remains(arguments: str, code: int, tmp_path: Path) -> None:
    done = shell(f"{arguments} 2>&-", tmp_path)
    assert done.returncode == code
    assert done.stdout.startswith("vlm-edge") == (code == 0)

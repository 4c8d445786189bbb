"""Ctrl-C at every stage of the program: exit code 130, and one line at most."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.program import in_checkout
from vlm_edge.core.resources import resource_dir

PAGE = str(resource_dir("calibration") / "pages/receipt.png")
TOTAL = "what is the total?"
START = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever this test was started with
from vlm_edge.cli import interrupt, start

def press():
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000): pass  # the handler runs between two instructions

MODULE = sys.argv.pop(1)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == MODULE:
            sys.meta_path.remove(self)
            interfere()

sys.meta_path.insert(0, Finder())
"""
EXTENSION = """
def interfere():
    try:
        press()
    except KeyboardInterrupt:
        raise ImportError("initialization failed")
"""
FINALIZER = """
class Dropped:
    def __del__(self):
        press()

def interfere():
    Dropped()
"""
SWALLOWED = """
def interfere():
    try:
        press()
    except BaseException:
        pass
"""
KINDS = {"plain": "interfere = press\n", "extension": EXTENSION, "finalizer": FINALIZER, "swallowed": SWALLOWED}


def run(program: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **in_checkout(folder))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("module", ["typer", "vlm_edge.errors", "onnxruntime"])
def test_an_import_that_is_interrupted(kind: str, module: str, tmp_path: Path) -> None:
    done = run(START + KINDS[kind] + "start.main()", module, "run", PAGE, TOTAL, folder=tmp_path)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    assert done.stdout == "" or kind == "swallowed"


def test_an_interrupt_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    ignored = START + "interfere = press\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nstart.main()"
    done = run(ignored, "typer", "--version", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_second_interrupt_leaves_at_once(tmp_path: Path) -> None:
    twice = START + "def interfere():\n    try: press()\n    finally: press()\nstart.main()"
    done = run(twice, "typer", "--version", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_other_errors_in_finalizers_are_still_shown(tmp_path: Path) -> None:
    failing = START + FINALIZER.replace("press()", "raise ValueError('lost')") + "start.main()"
    done = run(failing, "typer", "--version", folder=tmp_path)
    assert done.returncode == 0
    assert "ValueError: lost" in done.stderr


@pytest.mark.parametrize("delay_s", [0, 0.02, 0.04, 0.08, 0.16, 0.3, 0.45, 0.6, 1.5])
def test_whenever_it_comes(delay_s: float, tmp_path: Path) -> None:
    """Standard input stays open, so the program waits for its image until it is interrupted."""
    program = f"""
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from vlm_edge.cli import interrupt, start
watch = interrupt.watch
interrupt.watch = lambda: (watch(), os.write(1, b"."))
import sys
sys.argv = ["vlm-edge", "run", "-", {TOTAL!r}]
start.main()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **pipes, **in_checkout(tmp_path)) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"."
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (130, b"", b"interrupted\n")

"""One question in a process of its own, for its peak memory.

A process that has asked in other ways before keeps some of their memory, and its peak is that of the largest. One JSON object
on standard input says what to ask, one on standard output tells the peak.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from vlm_edge.core.load import parse, to_plain
from vlm_edge.errors import CheckFailed
from vlm_edge.pipeline.answering.options import AskOptions

_PROGRAM = """
from vlm_edge.cli import main, run
from vlm_edge.pipeline.measuring.own_process import answer_on_stdout
answer_on_stdout()
"""
"""With the command line's imports, as `vlm-edge run` has them."""


@dataclass(frozen=True)
class Asked:
    """A bundle's folder, how it is opened, and one question about images, named by their paths."""

    bundle: str
    device: str
    threads: int | None
    images: tuple[str, ...]
    question: str
    options: AskOptions


def peak_bytes(asked: Asked) -> int:
    """The most resident memory of a process that loads the bundle and asks once; 0 where the system does not tell.

    Raises CheckFailed where that process fails.
    """
    found = told_by(_PROGRAM, asked, what="a question in a process of its own", remedy="ask it with vlm-edge run")
    return int(found["peak_bytes"])


def told_by(program: str, given: Any, *, what: str, remedy: str) -> dict[str, Any]:
    """The JSON object that a Python program prints, in a process of its own that is given `given` as JSON.

    Raises CheckFailed, with the last line that it said, where it fails.
    """
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(to_plain(given)), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CheckFailed(f"{what} failed: {said}", remedy=remedy)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def answer_on_stdout() -> None:
    """What the other process does."""
    from vlm_edge.pipeline.answering.run import Pipeline

    asked = parse(json.loads(sys.stdin.read()), Asked, "standard input")
    pipeline = Pipeline.load(asked.bundle, device=asked.device, threads=asked.threads)
    answer = pipeline.ask(list(asked.images), asked.question, asked.options)
    sys.stdout.write(json.dumps({"peak_bytes": answer.measured_peak_bytes}))

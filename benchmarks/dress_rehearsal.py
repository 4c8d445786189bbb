"""A model of real size through the whole product: plan, build, verify, and a question about a page at 300 DPI, streamed.

python -m benchmarks.shapes make llava-1.5-7b CHECKPOINT
python -m benchmarks.dress_rehearsal --recipe llava-1.5-7b [--most 12GiB] CHECKPOINT OUT [-- --method rtn]

What stands behind `--` goes to build. Each command is a process of its own; its measured peak is its resident set, mapped files and
interpreter included. The rows go to benchmarks/results/dress_rehearsal.md under the name of the checkpoint and the method. Weights
are random: memory and times mean something, the answer does not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.campaign import report
from benchmarks.large_page import PAGE_PX, QUESTION, draw_page
from benchmarks.measured_child import gib, measured
from vlm_edge.core import host
from vlm_edge.pipeline.machine import cpu_name
from vlm_edge.units import parse_bytes

OUT = Path(__file__).parent / "results/dress_rehearsal.md"
TITLE = "# Dress rehearsal\n\nA model of real size through the whole product, step by step.\n"
NEW_TOKENS = 16
HEAD = ("step", "planned peak", "measured peak", "with mapped files", "time", "what it said")


@dataclass(frozen=True)
class Step:
    """planned_bytes: None where nothing is planned.  kept_bytes: measured without pages of mapped files; None: not told apart."""

    name: str
    planned_bytes: int | None
    measured_bytes: int
    seconds: float
    said: str = ""
    kept_bytes: int | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        planned, kept = ("-" if each is None else gib(each) for each in (self.planned_bytes, self.kept_bytes))
        return (self.name, planned, kept, gib(self.measured_bytes), f"{self.seconds:.0f} s", self.said)


def main(checkpoint: Path, out: Path, recipe: str, most: str, more: Sequence[str]) -> None:
    size = "x".join(map(str, PAGE_PX))
    limit = parse_bytes(most)
    with tempfile.TemporaryDirectory() as name:
        page = Path(name) / "page.png"
        draw_page().save(page, dpi=(300, 300))
        steps = [_planned(checkpoint, recipe, most, size), *_built(checkpoint, out, recipe, most, size, more)]
        verifying = next(step.planned_bytes for step in steps if step.name == "build: verify")
        steps += [_verified(out, verifying), *_asked(out, page, most)]
    rows = [step.cells for step in steps]
    method = more[more.index("--method") + 1] if "--method" in more else "awq"
    about = (
        f"{cpu_name()}, {host.real_cores()} cores, {gib(host.total_bytes() or 0)} of memory, a page of {size} px. No step may take "
        f"more than {most}; what quantize starts beside itself counts in its own row."
    )
    command = " ".join(
        ["python -m benchmarks.dress_rehearsal --recipe", recipe, "--most", most, "CHECKPOINT OUT --", *more]
    )
    report.write(f"{checkpoint.name}, {method}", HEAD, rows, about=about, out=OUT, title=TITLE, command=command)
    print(*("| " + " | ".join(row) + " |" for row in (HEAD, *rows)), sep="\n")
    over = [step.name for step in steps if step.measured_bytes > limit]
    beyond = [
        s.name for s in steps if s.planned_bytes is not None and (s.kept_bytes or s.measured_bytes) > s.planned_bytes
    ]
    if over or beyond:
        raise SystemExit(f"above {most}: {over or 'nothing'}; above what was planned: {beyond or 'nothing'}")


def _planned(checkpoint: Path, recipe: str, most: str, size: str) -> Step:
    peak, seconds, found = measured(
        "plan", str(checkpoint), "--recipe", recipe, "--budget", most, "--image-size", size, "--target", "cpu"
    )
    return Step("plan", None, peak, seconds, f"a run of the bundle will peak at {gib(found['peak_bytes'])}")


def _built(checkpoint: Path, out: Path, recipe: str, most: str, size: str, more: Sequence[str]) -> list[Step]:
    peak, seconds, found = measured(
        "build", str(checkpoint), str(out), "--recipe", recipe, "--max-memory", most, "--budget", most,
        "--image-size", size, *more,
    )  # fmt: skip
    steps = [
        Step(
            f"build: {row['name']}",
            row["planned_peak_bytes"],
            row["measured_peak_bytes"],
            row["seconds"],
            "finished before" if row["skipped"] else "",
            row["kept_peak_bytes"],
        )
        for row in found["steps"]
    ]
    stored = sum(artifact["bytes"] for artifact in found["artifacts"])
    said = f"{len(found['artifacts'])} files, {gib(stored)}"
    return [*steps, Step("build, as a whole", None, peak, seconds, said)]


def _verified(out: Path, planned_bytes: int | None) -> Step:
    peak, seconds, found = measured("verify", str(out))
    states = [check["ok"] for check in found["checks"]]
    return Step(
        "verify", planned_bytes, peak, seconds, f"{states.count(True)} checks passed, {states.count(False)} not"
    )


def _asked(out: Path, page: Path, most: str) -> list[Step]:
    asked = [str(page), QUESTION, "--bundle", str(out), "--budget", most, "--max-new-tokens", str(NEW_TOKENS)]
    peak, seconds, found = measured("run", *asked)
    tokens, planned = found["tokens"], found["memory"]["planned_peak_bytes"]
    first = (found["timings_ms"]["total"] - found["timings_ms"]["decode"]) / 1000
    said = (
        f"{len(found['tiles'])} tiles, {tokens['visual_before']} visual tokens, {tokens['visual_after']} after merging; "
        f"first token after {first:.0f} s, then {found['timings_ms']['decode'] / max(1, tokens['generated'] - 1):.0f} ms each"
    )
    return [Step("run --json", planned, peak, seconds, said), _streamed(asked, planned)]


def _streamed(asked: Sequence[str], planned_bytes: int) -> Step:
    """The same as text, whose pieces are timed as they arrive."""
    started, times = time.perf_counter(), []
    command = [sys.executable, "-m", "vlm_edge", "run", *asked]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert child.stdout
    while os.read(child.stdout.fileno(), 1 << 16):
        times.append(time.perf_counter() - started)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(child.returncode)
    said = (
        f"answer in {len(times)} pieces, the first after {times[0]:.0f} s, the last {times[-1] - times[0]:.1f} s later"
    )
    return Step("run, streamed", planned_bytes, usage.ru_maxrss * 1024, time.perf_counter() - started, said)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--most", default="12GiB", help="that a step may take")
    parser.add_argument("build", nargs="*", help="behind --: options of build")
    given = parser.parse_args()
    main(given.checkpoint, given.out, given.recipe, given.most, given.build)

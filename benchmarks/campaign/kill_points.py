"""SIGKILL before every change that the work makes to its files: the old bundle runs, or the work goes on to the same bytes.

python -m benchmarks.campaign.kill_points [--work export quantize build] [--step 1]

Where benchmarks/campaign/kills.py chooses moments at random, this takes all of them, or each STEP-th: before a file below the
output folder is opened for writing, renamed, linked, cut or removed, or a folder made or removed. What has to be right is the same.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.campaign import report
from benchmarks.campaign.kills import MANIFEST, Work, answer_of, counted, forked, prepared, require_end

WORKS = ("export", "quantize", "build")
CHANGES = frozenset(
    {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}
)
"""Audit events that name a changed file first; `open` is one too where its flags say so."""


def watched(work: Callable[[Path], object], kill_at: int, counter: Path | None = None) -> Callable[[Path], object]:
    """The same work, killed before change `kill_at`, counted from 1; 0: never.  counter: becomes one byte longer with each change.

    Changes by a path relative to an open folder, as removing a tree makes them, count wherever that folder is.
    """

    def run(out: Path) -> object:
        root, seen = str(out), 0

        def on_event(event: str, given: tuple[object, ...]) -> None:
            nonlocal seen
            if not _changes(event, given, root):
                return
            seen += 1
            if counter is not None:
                with counter.open("ab") as stream:
                    stream.write(b".")
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(on_event)
        return work(out)

    return run


def _changes(event: str, given: tuple[object, ...], root: str) -> bool:
    if event == "open":
        path, _, flags = given
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return bool(writes) and isinstance(path, str | bytes) and os.fsdecode(path).startswith(root)
    if event not in CHANGES or not isinstance(given[0], str | bytes | os.PathLike):
        return False
    path = os.fsdecode(given[0])
    return path.startswith(root) or not Path(path).is_absolute()


def campaign(name: str, work: Work, step: int, folder: Path) -> tuple[int, Counter[str]]:
    """How many points there were, and what was found after each kill; ends the program at what is not right."""
    whole, counter, out = folder / "whole", folder / "changes", folder / "out"
    work.into(whole)
    answers = {answer_of(whole)} if (whole / MANIFEST).is_file() else set()
    if forked(watched(work.do, 0, counter), whole, None):
        raise SystemExit(f"{name} fails without being killed")
    answers.add(answer_of(whole))
    found = Counter[str]()
    points = range(1, counter.stat().st_size + 1, step)
    for number, point in enumerate(points, start=1):
        work.into(out)
        if forked(watched(work.do, point), out, None) != signal.SIGKILL:
            raise SystemExit(f"{name} did not come to change {point}")
        found[work.check(out, frozenset(answers))] += 1
        require_end(name, work, out, whole, after=f"a kill before change {point}")
        shutil.rmtree(out)
        print(f"{name}: {number} of {len(points)}, {dict(found)}", flush=True)
    return len(points), found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", choices=WORKS, nargs="+", default=list(WORKS))
    parser.add_argument("--step", type=int, default=1, help="take each STEP-th change")
    given = parser.parse_args()
    rows = []
    with prepared() as (folder, known):
        for kind in given.work:
            place = folder / kind
            place.mkdir()
            points, found = campaign(kind, known[kind], given.step, place)
            rows.append((kind, points, counted(found), f"{points} of {points}"))
    about = "Killed before a change to a file: each in turn, then run again without being killed."
    report.write("Kill -9 before every change", ("work", "killed", "found after the kill", "ended with the undisturbed result"),
                 rows, about=about)  # fmt: skip


if __name__ == "__main__":
    main()

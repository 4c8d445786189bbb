"""A disk that is full, or becomes read-only, at some point of export, quantize, build and batch.

python -m benchmarks.campaign.full_disk [--count 20] [--seed 0]

The output lies on a small tmpfs, which a process of root mounts in a mount namespace of its own: of a random size below what the
work needs, or large enough and remounted read-only at a random moment. The work has to end with an error of ours that says so, exit
code 2, and what was there before has to run as before; once there is room, the same command has to come to the undisturbed result.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.campaign import report
from benchmarks.campaign.kills import WORKS, Work, answer_of, works
from tests import buildable
from vlm_edge.core.bundle import MANIFEST
from vlm_edge.errors import VlmEdgeError

CLONE_NEWNS = 0x00020000
ROOM_MIB = 256
OURS, THEIRS = 2, 70


def own_mounts() -> None:
    """What is mounted from here on is seen by this process and its children alone."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise SystemExit("this needs root, for a small tmpfs of its own")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def mount(place: Path, *options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)], check=True)


def remount(place: Path, options: str) -> bool:
    """Read-only is refused while a file is open for writing."""
    done = subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=False, capture_output=True)
    return done.returncode == 0


def used_kib(place: Path) -> int:
    status = os.statvfs(place)
    return (status.f_blocks - status.f_bfree) * status.f_frsize >> 10


def ended(work: Work, out: Path) -> tuple[int, str]:
    """In a forked child: 0, OURS with an error's message, or THEIRS with a traceback's last line."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        code, told = 0, ""
        try:
            work.do(out)
        except VlmEdgeError as error:
            code, told = error.exit_code, error.message
        except BaseException as error:  # noqa: BLE001  # that is what is looked for
            code, told = THEIRS, f"{type(error).__name__}: {error}"
        os.write(writer, told[:2000].encode())
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as stream:
        told = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told


def read_only_later(place: Path, after_s: float, stop: threading.Event) -> None:
    """As soon as no file is open for writing behind that moment."""
    time.sleep(after_s)
    while not stop.is_set() and not remount(place, "ro"):
        time.sleep(0.001)


@dataclass(frozen=True)
class Undisturbed:
    """Work with room enough: what it took, and what came of it."""

    kib: int
    seconds: float
    result: object


def point(work: Work, kind: str, share: float, place: Path, whole: Undisturbed) -> tuple[str, str]:
    """One point: what became of the work, and of the attempt to go on.  share: of the room or the time that it needs."""
    mount(place, f"size={ROOM_MIB}m")
    try:
        out = place / "out"
        work.into(out)
        answers = frozenset({answer_of(out)} if (out / MANIFEST).is_file() else ())
        before = used_kib(place)
        stop = threading.Event()
        if kind == "full":
            remount(place, f"size={max(4, before + round(share * (whole.kib - before)))}k")
        turner = threading.Thread(target=read_only_later, args=(place, share * whole.seconds, stop))
        if kind == "read-only":
            turner.start()
        code, told = ended(work, out)
        stop.set()
        if kind == "read-only":
            turner.join()
        outcome = {0: "got through", OURS: "refused"}.get(code, f"FAULT: exit {code}, {told}")
        if code == OURS and not told:
            outcome = "FAULT: no message"
        if code == OURS and (out / MANIFEST).is_file():
            work.check(out, answers)
        remount(place, f"rw,size={ROOM_MIB}m")
        code, told = ended(work, out)
        if code:
            return outcome, f"FAULT: {told}"
        return outcome, "as undisturbed" if work.result(out) == whole.result else "FAULT: another result"
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def campaign(count: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    known, rng, rows = works(folder), random.Random(seed), []
    needs = {}
    for name, work in known.items():
        place = folder / f"whole-{name}"
        place.mkdir()
        mount(place, f"size={ROOM_MIB}m")
        work.into(place / "out")
        ended(work, place / "out")  # imports and traces once
        subprocess.run(["umount", "-l", str(place)], check=True)
        mount(place, f"size={ROOM_MIB}m")
        work.into(place / "out")
        started, most = time.monotonic(), [0]
        stop = threading.Event()

        def look(place: Path = place, most: list[int] = most, stop: threading.Event = stop) -> None:
            while not stop.wait(0.002):
                most[0] = max(most[0], used_kib(place))

        looking = threading.Thread(target=look)
        looking.start()
        code, told = ended(work, place / "out")
        stop.set()
        looking.join()
        if code:
            raise SystemExit(f"{name} fails with room enough: {told}")
        seconds = time.monotonic() - started
        needs[name] = Undisturbed(max(most[0], used_kib(place)), seconds, work.result(place / "out"))
        subprocess.run(["umount", "-l", str(place)], check=True)
    for number in range(count):
        name, kind = WORKS[number % len(WORKS)], ("full", "read-only")[number // len(WORKS) % 2]
        place = folder / f"disk-{number}"
        place.mkdir()
        share = rng.uniform(0, 0.95)
        outcome, after = point(known[name], kind, share, place, needs[name])
        rows.append({"work": name, "kind": kind, "share": share, "outcome": outcome, "after": after})
        print(f"{number}: {name}, {kind} at {share:.0%}: {outcome}; {after}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=20, help="points, by turns of work and kind")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    own_mounts()
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    with tempfile.TemporaryDirectory() as name, buildable.quickly():
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        rows = campaign(given.count, given.seed, Path(name))
    counted = Counter((row["work"], row["kind"], row["outcome"], row["after"]) for row in rows)
    table = [(*key, count) for key, count in sorted(counted.items())]
    report.write(
        "Full and read-only disks", ("work", "disk", "the work", "with room again", "points"), table,
        about="A tmpfs that is too small by a random amount, or turns read-only at a random moment.",
    )  # fmt: skip
    sys.exit(any("FAULT" in row["outcome"] + row["after"] for row in rows))


if __name__ == "__main__":
    main()

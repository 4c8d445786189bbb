"""A disk that is full, or becomes read-only, at some point of export, quantize, build and batch.

python -m benchmarks.campaign.full_disk [--count 20] [--seed 0]

The output lies on a small tmpfs, which a process of root mounts in a mount namespace of its own, of a random size below what the
work needs. Read-only: a mount with files open for writing cannot be turned, so from a random one of the work's changes on, every
file that Python opens for writing, renames, makes or removes there fails as on a read-only disk. The work has to end with an error
of ours that says so, exit code 2, and what was there before has to run as before; once there is room, the same command has to come
to the undisturbed result.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
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
CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
OURS, THEIRS = 2, 70


def own_mounts() -> None:
    """What is mounted from here on is seen by this process and its children alone."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise SystemExit("this needs root, for a small tmpfs of its own")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def mount(place: Path, *options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def used_kib(place: Path) -> int:
    status = os.statvfs(place)
    return (status.f_blocks - status.f_bfree) * status.f_frsize >> 10


def ended(work: Work, out: Path, read_only_from: int | None = None) -> tuple[int, str, int]:
    """In a forked child: 0, OURS with an error's message, or THEIRS with a traceback's last line; and changes that were made.

    read_only_from: number of the first change that fails, as all behind it.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        code, told, changes = 0, "", Changes(out, read_only_from)
        sys.addaudithook(changes)
        try:
            work.do(out)
        except VlmEdgeError as error:
            code, told = error.exit_code, error.message
        except BaseException as error:  # noqa: BLE001  # that is what is looked for
            code, told = THEIRS, f"{type(error).__name__}: {error}"
        os.write(writer, json.dumps([told[:2000], changes.seen]).encode())
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as stream:
        told, seen = json.loads(stream.read())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told, seen


class Changes:
    """An audit hook that counts what changes a folder, and from some number on refuses it as a read-only disk does."""

    def __init__(self, folder: Path, refused_from: int | None) -> None:
        self.seen = 0
        self._folder, self._refused_from = str(folder), refused_from

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        """As sys.addaudithook has it."""
        if event != "open" and event not in CHANGES:
            return
        if event == "open" and not (isinstance(given[2], int) and given[2] & WRITING):
            return
        if not str(given[0]).startswith(self._folder):
            return
        self.seen += 1
        if self._refused_from is not None and self.seen > self._refused_from:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(given[0]))


def differing(one: Any, other: Any) -> list[Any]:
    """What two results differ in: paths of a bundle, rows of a batch."""
    pairs = [set(each.items() if isinstance(each, dict) else each) for each in (one, other)]
    return sorted({name for name, _ in pairs[0] ^ pairs[1]})


@dataclass(frozen=True)
class Undisturbed:
    """Work with room enough: what it took, and what came of it."""

    kib: int
    changes: int
    result: object


def point(work: Work, kind: str, share: float, place: Path, whole: Undisturbed) -> tuple[str, str]:
    """One point: what became of the work, and of the attempt to go on.  share: of the room that it needs, or of its changes."""
    mount(place, f"size={ROOM_MIB}m")
    try:
        out = place / "out"
        work.into(out)
        answers = frozenset({answer_of(out)} if (out / MANIFEST).is_file() else ())
        before = used_kib(place)
        if kind == "full":
            remount(place, f"size={max(4, before + round(share * (whole.kib - before)))}k")
        code, told, _ = ended(work, out, round(share * whole.changes) if kind == "read-only" else None)
        outcome = {0: "got through", OURS: "refused"}.get(code, f"FAULT: exit {code}, {told}")
        if code == OURS and not told:
            outcome = "FAULT: no message"
        if code == OURS and (out / MANIFEST).is_file():
            work.check(out, answers)
        remount(place, f"rw,size={ROOM_MIB}m")
        code, told, _ = ended(work, out)
        if code:
            return outcome, f"FAULT: {told}"
        found = work.result(out)
        return (
            outcome,
            "as undisturbed" if found == whole.result else f"FAULT: another result, {differing(found, whole.result)}",
        )
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
        most = [0]
        stop = threading.Event()

        def look(place: Path = place, most: list[int] = most, stop: threading.Event = stop) -> None:
            while not stop.wait(0.002):
                most[0] = max(most[0], used_kib(place))

        looking = threading.Thread(target=look)
        looking.start()
        code, told, changes = ended(work, place / "out")
        stop.set()
        looking.join()
        if code:
            raise SystemExit(f"{name} fails with room enough: {told}")
        needs[name] = Undisturbed(max(most[0], used_kib(place)), changes, work.result(place / "out"))
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
        about="A tmpfs that is too small by a random amount, or fails all changes from a random one on.",
    )  # fmt: skip
    sys.exit(any("FAULT" in row["outcome"] + row["after"] for row in rows))


if __name__ == "__main__":
    main()

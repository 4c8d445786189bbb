"""SIGKILL at random moments of export, quantize, build and batch: the old bundle runs, or the work goes on.

python -m benchmarks.campaign.kills [--count 200] [--seed 0] [--work export ...]

The work is that of a tiny checkpoint, in forked children in which everything is imported and torch's exporter has run once, so that
the moments fall into the work and not into the start of Python (benchmarks/kill_export.py kills the whole command). After each kill
of a bundle's writer the folder has to hold no bundle yet, or one whose manifest, hashes and `verify` are right, and which gives its
old answer or the new one, or says what it lacks; after every KILLS_IN_ROW the work is left to end, and has to write what an
undisturbed run writes. After each kill of `batch` the output has to hold whole rows, none twice.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.campaign import report
from tests import buildable
from vlm_edge.core.bundle import MANIFEST, open_bundle, verify_hashes
from vlm_edge.errors import DamagedBundle
from vlm_edge.pipeline.answering.options import AskOptions
from vlm_edge.pipeline.answering.preflight import find_bundle
from vlm_edge.pipeline.answering.run import Pipeline
from vlm_edge.pipeline.batch_inference import batch
from vlm_edge.pipeline.batch_inference.input import BatchInput
from vlm_edge.pipeline.batch_inference.log import BatchLog
from vlm_edge.pipeline.building.build import build_model
from vlm_edge.pipeline.checking.verify import verify_bundle
from vlm_edge.pipeline.exporting.export import ExportOptions, export_model
from vlm_edge.pipeline.quantizing.quantize import QuantizeOptions, quantize_model

WORKS = ("export", "quantize", "build", "batch")
KILLS_IN_ROW = 5
ROWS = 60
QUESTION = "what is it?"


@dataclass(frozen=True)
class Work:
    """One kind of work.  into: puts what is there before it into a new folder.  do: into that folder.

    check: given the folder and the answers that it may give; raises SystemExit where it is not right, else tells what it is.
    result: what has to be the same in the end.
    """

    into: Callable[[Path], object]
    do: Callable[[Path], object]
    check: Callable[[Path, frozenset[str]], str]
    result: Callable[[Path], object]


def works(folder: Path) -> dict[str, Work]:
    """All kinds, on one tiny model whose bundle, built once, is there before export and quantize."""
    model, data = buildable.save(folder)
    recipe = buildable.recipe(folder)
    rtn = buildable.options(data, method="rtn", measure=False)
    awq = replace(rtn, method="awq")
    base = folder / "base"
    build_model(model, base, recipe, rtn)
    exported = ExportOptions(dtype="int8", threads=1)
    quantized = QuantizeOptions(target="cpu", group_size=32, calib=data, samples=4, seqlen=48, search_tokens=64)

    def old(out: Path) -> None:
        shutil.copytree(base, out)

    return {
        "export": Work(old, lambda out: export_model(model, out, exported), state, artifacts),
        "quantize": Work(old, lambda out: quantize_model(model, out, quantized), state, artifacts),
        "build": Work(lambda _: None, lambda out: build_model(model, out, recipe, awq), state, artifacts),
        "batch": batch_work(folder),
    }


def artifacts(out: Path) -> object:
    """Every file but reports, which tell how long things took."""
    return {a.path: a.sha256 for a in open_bundle(out).manifest.artifacts if not a.role.startswith("report.")}


def answer_of(bundle: Path) -> str:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    return Pipeline.load(bundle, device="cpu", threads=1).ask(image, QUESTION, AskOptions(max_new_tokens=4)).text


def state(out: Path, answers: frozenset[str]) -> str:
    """`no bundle yet`, `answers`, or what a bundle lacks; ends the program at anything else."""
    if not (out / MANIFEST).is_file():
        return "no bundle yet"
    opened = open_bundle(out)
    verify_hashes(opened, force=True)
    found = verify_bundle(out, threads=1)
    if not found.ok:
        raise SystemExit(f"verify says no: {found.failures}")
    try:
        text = answer_of(out)
    except DamagedBundle as cause:
        lacking = next((role for role in ("vision.graph", "no decoder") if role in cause.message), None)
        if lacking is None:
            raise
        return f"lacks its {lacking.removeprefix('no ')}, and says so"
    if text not in answers:
        raise SystemExit(f"the bundle answers {text!r}, not one of {sorted(answers)}")
    return "answers"


def batch_work(folder: Path) -> Work:
    """ROWS questions about pages of noise, to the embedded model."""
    pages = folder / "pages"
    pages.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(pages / f"{number}.png")
    rows = [{"id": str(i), "image": f"{i % 4}.png", "question": f"what is the total? {i}"} for i in range(ROWS)]
    (pages / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = BatchInput(pages / "rows.jsonl")
    options = AskOptions(max_new_tokens=2, max_tiles=1)

    def do(out: Path) -> None:
        of = batch.asked_of(find_bundle(None).manifest.self_sha256, options)
        with BatchLog.open(out / "out.jsonl") as log:
            total = batch.count_rows(source, log, of)
            loading = batch.Loading(None, "cpu", 1, None, False)
            engine = batch.LocalEngine(batch.Answerer(loading, options, str(source.root))) if log.done < total else None
            batch.run_batch(source, log, engine, of=of, total=total)

    def told(out: Path) -> list[tuple[str, str]]:
        path = out / "out.jsonl"
        # a last line that the kill has torn is nobody's yet
        whole = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
        return [(row["id"], row.get("answer", row.get("error"))) for row in map(json.loads, whole)]

    def check(out: Path, _: frozenset[str]) -> str:
        ids = [identity for identity, _ in told(out)]
        if len(set(ids)) != len(ids) or not set(ids) <= {row["id"] for row in rows}:
            raise SystemExit(f"rows are doubled or strange: {Counter(ids).most_common(2)}")
        return "all rows" if len(ids) == ROWS else "some rows, each once" if ids else "no rows yet"

    return Work(Path.mkdir, do, check, lambda out: sorted(told(out)))


def forked(work: Callable[[Path], object], out: Path, after_s: float | None) -> int:
    """Its wait status; killed after so many seconds, or never."""
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException):  # the parent says that it failed
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            work(out)
            code = 0
        os._exit(code)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def different(expected: object, found: object) -> list[object]:
    """The entries of two results, mappings or lists, that only one of them has."""
    one, other = (list(each.items()) if isinstance(each, dict) else list(each) for each in (expected, found))  # type: ignore[call-overload]
    return [entry for entry in (*one, *other) if (entry in one) != (entry in other)]


def require_end(name: str, work: Work, out: Path, whole: Path, *, after: str) -> None:
    """Let killed work go on to its end; ends the program where that is not what `whole`, made undisturbed, is.

    What differs is kept. after: what has happened, in words.
    """
    if forked(work.do, out, None):
        raise SystemExit(f"{name} does not go on from what {after} left")
    expected, result = work.result(whole), work.result(out)
    if result != expected:
        kept = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        shutil.copytree(whole, kept / "expected")
        shutil.copytree(out, kept / "found")
        raise SystemExit(f"{name} came to another result after {after}, kept in {kept}: {different(expected, result)}")
    if left := [path.name for path in out.glob(".export-*")]:
        raise SystemExit(f"{name} left {left} behind")


@contextlib.contextmanager
def prepared() -> Iterator[tuple[Path, dict[str, Work]]]:
    """A folder for the time of the block, and the works in it."""
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    with tempfile.TemporaryDirectory() as name, buildable.quickly():
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        yield folder, works(folder)


def counted(found: Counter[str]) -> str:
    """What was found and how often, for a table."""
    return ", ".join(f"{state}: {count}" for state, count in found.most_common())


def campaign(name: str, work: Work, kills: int, seed: int, folder: Path) -> tuple[int, int, Counter[str]]:
    """How many were killed (a child may end first), how many runs came to the end, and what was found after each kill."""
    whole = folder / "whole"
    work.into(whole)
    answers = {answer_of(whole)} if (whole / MANIFEST).is_file() else set()
    if forked(work.do, whole, None):
        raise SystemExit(f"{name} fails without being killed")
    answers |= {answer_of(whole)} if (whole / MANIFEST).is_file() else set()
    again = folder / "measured"
    work.into(again)
    started = time.monotonic()
    forked(work.do, again, None)
    whole_s = time.monotonic() - started
    moments, found = random.Random(f"{seed} {name}"), Counter[str]()
    killed = finished = 0
    out = folder / "out"
    while killed < kills:
        work.into(out)
        for _ in range(min(KILLS_IN_ROW, kills - killed)):
            status = forked(work.do, out, moments.uniform(0, whole_s))
            if status not in (0, signal.SIGKILL):
                raise SystemExit(f"{name} failed on what a kill had left")
            killed += status == signal.SIGKILL
            found[work.check(out, frozenset(answers))] += 1
        require_end(name, work, out, whole, after=f"{KILLS_IN_ROW} kills")
        finished += 1
        print(f"{name}: {killed} killed, {finished} ended right, {dict(found)}", flush=True)
        shutil.rmtree(out)
    return killed, finished, found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="kills in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", choices=WORKS, nargs="+", default=list(WORKS))
    given = parser.parse_args()
    rows = []
    with prepared() as (folder, known):
        export_model(
            folder / "tiny-llava", folder / "warm", ExportOptions(dtype="int8", threads=1)
        )  # the exporter's one run
        for kind in given.work:
            place = folder / kind
            place.mkdir()
            killed, finished, found = campaign(kind, known[kind], -(-given.count // len(given.work)), given.seed, place)
            rows.append((kind, killed, counted(found), f"{finished} of {finished}"))
    head = ("work", "killed", "found after a kill (a child may have ended first)", "ended with the undisturbed result")
    report.write("Kill -9", head, rows, about="Tiny LLaVA checkpoint, forked children, random moments.")


if __name__ == "__main__":
    sys.exit(main())

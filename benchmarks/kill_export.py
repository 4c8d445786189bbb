"""Kill a real export into a working bundle at random moments, and see that the bundle is right after each.

The bundle is the embedded one, which answers questions; the export is that of its own checkpoint, in fp32 and int8 by turns, as
a process of its own that gets SIGKILL. After each kill the manifest and every hash have to be right, `verify` has to say no to
nothing, and the bundle has to answer as before, or, where the kill fell between striking the old graph from the manifest and
listing the new one, to lack a vision graph and to say so. An export that is not killed then has to get through.

    python -m benchmarks.kill_export [KILLS [SEED]]
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from vlm_edge.core.bundle import open_bundle, verify_hashes, write_manifest
from vlm_edge.core.checkpoint import open_checkpoint
from vlm_edge.errors import DamagedBundle
from vlm_edge.pipeline.answering.run import Pipeline
from vlm_edge.pipeline.checking.verify import verify_bundle
from vlm_edge.pipeline.embedded import NANO
from vlm_edge.pipeline.exporting.source import source_hashes

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "recipes/nano/checkpoint"
PAGE, QUESTION = ROOT / "calibration/pages/receipt.png", "what is the total?"
DTYPES = ("int8", "fp32")


def working_bundle(folder: Path) -> Path:
    """The embedded bundle, which says that it was made from its checkpoint by the hashes that `export` compares."""
    root = Path(shutil.copytree(NANO, folder / "bundle"))
    manifest = open_bundle(root).manifest
    write_manifest(root, replace(manifest, source=source_hashes(open_checkpoint(CHECKPOINT))))
    return root


def export(bundle: Path, dtype: str, *, kill_after_s: float | None = None) -> tuple[float, str]:
    """Run the command; returns the seconds that it took and the last step that it told of."""
    command = [sys.executable, "-m", "vlm_edge", "export", str(CHECKPOINT), str(bundle), "--dtype", dtype]
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            process.wait(kill_after_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        told = process.stderr.read().splitlines() if process.stderr else []
    seconds = time.perf_counter() - start
    if kill_after_s is None and process.returncode != 0:
        raise SystemExit("\n".join(["an export that was not killed failed:", *told]))
    return seconds, "(ended before)" if process.returncode == 0 else told[-1] if told else "(starting)"


def state(bundle: Path, answer: str) -> str:
    """`runs`, or `resumable` for a bundle that says it has no vision graph; ends the program at anything else."""
    opened = open_bundle(bundle)
    verify_hashes(opened, force=True)
    found = verify_bundle(bundle, threads=1)
    if not found.ok:
        raise SystemExit(f"verify says no: {found.failures}")
    try:
        text = Pipeline.load(bundle, device="cpu", threads=1).ask(PAGE, QUESTION).text
    except DamagedBundle as cause:
        if "has no vision.graph" in cause.message:
            return "resumable"
        raise
    if text != answer:
        raise SystemExit(f"the bundle answers {text!r}, not {answer!r}")
    return "runs"


def main(kills: int, seed: int) -> None:
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        bundle = working_bundle(Path(folder))
        answer = Pipeline.load(bundle, device="cpu", threads=1).ask(PAGE, QUESTION).text
        whole_s, _ = export(bundle, "fp32")
        print(f"an export takes {whole_s:.1f} s; the bundle answers {answer!r}", flush=True)
        steps: Counter[str] = Counter()
        states: Counter[str] = Counter()
        for number in range(kills):
            seconds, step = export(bundle, DTYPES[number % 2], kill_after_s=moments.uniform(0, whole_s))
            after = state(bundle, answer)
            steps[step] += 1
            states[after] += 1
            print(f"{number + 1:2}: killed after {seconds:.2f} s, in {step!r}: {after}", flush=True)
        for dtype in DTYPES:
            export(bundle, dtype)
            assert state(bundle, answer) == "runs"
        left = [path.name for path in bundle.iterdir() if path.name.startswith(".export-")]
        print(
            f"{kills} kills: {dict(states)}; where: {dict(steps)}; left behind after the last export: {left or 'nothing'}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20, int(sys.argv[2]) if len(sys.argv) > 2 else 0)

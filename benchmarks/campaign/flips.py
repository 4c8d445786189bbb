"""Single changed bytes in a bundle: `verify` finds each, and a fresh `run` answers from none.

python -m benchmarks.campaign.flips [--bundle FOLDER] [--count 500] [--seed 0]

A file of the bundle is drawn by turns of small and large ones, a byte of it at random, and another value for it; the file's time is
put back, as a failing disk would leave it. `run` is fresh: no memory of what was hashed before. A byte of manifest.json that stands
between its values may become another blank: then nothing that the manifest says is changed, and the row counts it as `the same`.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.campaign import report
from vlm_edge.core.bundle import MANIFEST, open_bundle
from vlm_edge.errors import DamagedBundle, VlmEdgeError
from vlm_edge.pipeline.answering.options import AskOptions
from vlm_edge.pipeline.answering.run import Pipeline
from vlm_edge.pipeline.checking.verify import verify_bundle
from vlm_edge.pipeline.embedded import NANO

IMAGE = np.full((120, 150, 3), 255, np.uint8)
QUESTION = "what is the total?"


def flipped(path: Path, rng: random.Random) -> bytes:
    """Change one byte, keep the time; returns what was there."""
    content, status = path.read_bytes(), path.stat()
    at = rng.randrange(len(content))
    changed = bytearray(content)
    changed[at] ^= rng.randrange(1, 256)
    path.write_bytes(changed)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return content


def verify_finds(root: Path) -> bool:
    try:
        return not verify_bundle(root, threads=1).ok
    except DamagedBundle:
        return True


def run_refuses(root: Path, cache: Path) -> bool:
    shutil.rmtree(cache, ignore_errors=True)
    try:
        Pipeline.load(root, device="cpu", threads=1).ask(IMAGE, QUESTION, AskOptions(max_new_tokens=2))
    except VlmEdgeError:
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bundle", type=Path, default=NANO)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, found, faults = random.Random(given.seed), Counter[tuple[str, str]](), []
    with tempfile.TemporaryDirectory() as name:
        root, cache = Path(name) / "bundle", Path(name) / "cache"
        shutil.copytree(given.bundle, root, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        os.environ["XDG_CACHE_HOME"] = str(cache)
        before = open_bundle(root).manifest
        paths = [MANIFEST, *(artifact.path for artifact in before.artifacts)]
        for number in range(given.count):
            path = paths[number % len(paths)]
            content = flipped(root / path, rng)
            refused, seen = run_refuses(root, cache), verify_finds(root)
            outcome = "found and refused" if refused and seen else "missed"
            if path == MANIFEST and not refused and not seen and open_bundle(root).manifest == before:
                outcome = "the same"
            if outcome == "missed":
                faults.append(f"{number}: {path}: run refuses {refused}, verify finds {seen}")
                print(faults[-1], flush=True)
            found[path, outcome] += 1
            (root / path).write_bytes(content)
    outcomes = ("found and refused", "the same", "missed")
    rows = [(path, *(found[path, outcome] for outcome in outcomes)) for path in paths]
    print("\n".join(map(str, rows)))
    report.write(
        "Single bytes",
        ("file", *outcomes),
        rows,
        about=f"{given.count} changed bytes, one at a time; {len(faults)} missed.",
    )
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()

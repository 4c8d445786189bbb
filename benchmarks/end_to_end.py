"""Greedy answers of every family's tiny random checkpoint, pipeline against transformers' `generate`.

python -m benchmarks.end_to_end [VARIANT...]     rows go to benchmarks/results/end_to_end.md, a row per variant and decoder

Checkpoints go through `vlm-edge export --component vision,projector,llm --dtype fp32` and are asked with `--tiling grid --reduce
none`, the family's own preprocessing. Decoder "onnx" is the bundle's, "torch" is transformers' text model without a cache behind
the same vision graph. A sequence stops early where the two best logits of transformers are nearer than 1e-3.
"""

from __future__ import annotations

import datetime
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from unittest.mock import patch

import numpy as np

from tests import runnable
from tests.exportable import remembering
from tests.models.pictures import grey, photo
from tests.runnable import GAP, STEPS, Compared
from vlm_edge.backends.onnx import export

OUT = Path(__file__).parent / "results/end_to_end.md"
SIZES = ((90, 61), (61, 90), (28, 28), (200, 45), (17, 120), (333, 250), (400, 7), (3, 200))
HEAD = "| checkpoint | head | decoder | sequences | steps compared | mismatches | early stops | max error of logits |"


def main(names: list[str]) -> None:
    tools = ("torch", "transformers", "onnxruntime", "onnxruntime-genai")
    versions = ", ".join(f"{tool} {metadata.version(tool)}" for tool in tools)
    said = (__doc__ or "").partition("\n\n")[0]
    about = f"{said}\n\n`python -m benchmarks.end_to_end`, {datetime.date.today()}, {versions}; {STEPS} steps, gap {GAP}.\n\n"
    head = f"{about}{HEAD}\n|{' --- |' * (HEAD.count('|') - 1)}\n"
    before = OUT.read_text("utf-8") if OUT.is_file() else ""
    rows = before.removeprefix(head).splitlines() if before.startswith(head) else []
    print(HEAD)
    for name in names or runnable.VARIANTS:
        # Only within a variant: two may have the same weights and another way to choose features.
        with patch.object(export, "trace", remembering(export.trace, {})):
            # Whether the head is the embedding does not concern a tower: variants have it once.
            for tied in (False, True) if name in runnable.SPECIAL else (False,):
                for row in measured(name, tied=tied):
                    print(row, flush=True)
                    rows = [*(old for old in rows if subject(old) != subject(row)), row]
                    OUT.write_text(head + "\n".join(sorted(rows, key=subject)) + "\n", "utf-8")


def subject(row: str) -> list[str]:
    """What a row is about: checkpoint, head and decoder."""
    return row.split("|")[1:4]


def questions() -> Iterator[tuple[str, list[np.ndarray]]]:
    """One image of each size, and pairs of them."""
    for seed, size in enumerate(SIZES):
        yield runnable.QUESTIONS[seed % 2], [photo(*size, seed)]
    for seed, (first, second) in enumerate(zip(SIZES, SIZES[3:], strict=False)):
        yield runnable.QUESTIONS[seed % 2], [photo(*first, 20 + seed), grey(*second)]


def measured(name: str, *, tied: bool) -> Iterator[str]:
    head = "embedding" if tied else "own"
    with tempfile.TemporaryDirectory() as folder:
        made = runnable.make(name, Path(folder), tied=tied, traced=True)
        for graph in (False, True):
            found = [runnable.compare(made, *asked, graph=graph) for asked in questions()]
            yield row(name, head, "onnx" if graph else "torch", found)


def row(name: str, head: str, engine: str, found: list[Compared]) -> str:
    mismatches = sum(one.mismatch is not None for one in found)
    steps, stops = sum(one.steps for one in found), sum(one.stopped for one in found)
    error = max(one.max_error for one in found)
    return f"| {name} | {head} | {engine} | {len(found)} | {steps} | {mismatches} | {stops} | {error:.1e} |"


if __name__ == "__main__":
    main(sys.argv[1:])

"""Greedy answers of every family's tiny random checkpoint, pipeline against transformers' `generate`.

python -m benchmarks.end_to_end [--continue] [VARIANT...]

Rows go to benchmarks/results/end_to_end.md, one for each variant, head and decoder. --continue: leave what the file has from a run
of the same day and versions that was stopped.

Checkpoints go through `vlm-edge export --component vision,projector,llm --dtype fp32` and are asked with `--tiling grid --reduce
none`, the family's own preprocessing. Decoder "onnx" is the bundle's, "torch" is transformers' text model without a cache behind
the same vision graph. A sequence stops early where the two best logits of transformers are nearer than 1e-3.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np

from tests import runnable
from tests.exportable import EXPORTED, exporting_once
from tests.models.pictures import grey, photo
from tests.runnable import GAP, STEPS, Compared

OUT = Path(__file__).parent / "results/end_to_end.md"
SIZES = ((90, 61), (61, 90), (28, 28), (200, 45), (17, 120), (333, 250), (400, 7), (3, 200))
ENGINES = ("torch", "onnx")
HEAD = "| checkpoint | head | decoder | sequences | steps compared | mismatches | early stops | max error of logits |"


def main(names: list[str], *, go_on: bool) -> None:
    tools = ("torch", "transformers", "onnxruntime", "onnxruntime-genai")
    versions = ", ".join(f"{tool} {metadata.version(tool)}" for tool in tools)
    said = (__doc__ or "").partition("\n\n")[0]
    about = f"{said}\n\n`python -m benchmarks.end_to_end`, {datetime.date.today()}, {versions}; {STEPS} steps, gap {GAP}.\n\n"
    head = f"{about}{HEAD}\n|{' --- |' * (HEAD.count('|') - 1)}\n"
    before = OUT.read_text("utf-8") if OUT.is_file() else ""
    rows = before.removeprefix(head).splitlines() if before.startswith(head) and (names or go_on) else []
    print(HEAD)
    for name, head_of in cases(names):
        if go_on and len([row for row in rows if subject(row)[:2] == [f" {name} ", f" {head_of} "]]) == len(ENGINES):
            continue
        for row in measured(name, tied=head_of == "embedding"):
            print(row, flush=True)
            rows = [*(old for old in rows if subject(old) != subject(row)), row]
            OUT.write_text(head + "\n".join(sorted(rows, key=subject)) + "\n", "utf-8")


def cases(names: list[str]) -> Iterator[tuple[str, str]]:
    """Variant and head. Whether the head is the embedding does not concern a tower: variants of one have it once."""
    for name in names or runnable.VARIANTS:
        # Only within a variant: two may have the same weights and another way to choose features.
        EXPORTED.clear()
        with exporting_once():
            yield from ((name, head) for head in (("own", "embedding") if name in runnable.SPECIAL else ("own",)))


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
        for engine in ENGINES:
            found = [runnable.compare(made, *asked, graph=engine == "onnx") for asked in questions()]
            yield row(name, head, engine, found)


def row(name: str, head: str, engine: str, found: list[Compared]) -> str:
    mismatches = sum(one.mismatch is not None for one in found)
    steps, stops = sum(one.steps for one in found), sum(one.stopped for one in found)
    error = max(one.max_error for one in found)
    return f"| {name} | {head} | {engine} | {len(found)} | {steps} | {mismatches} | {stops} | {error:.1e} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("variants", nargs="*", metavar="VARIANT")
    parser.add_argument("--continue", dest="go_on", action="store_true")
    given = parser.parse_args()
    main(given.variants, go_on=given.go_on)

"""Greedy answers of every family's tiny random checkpoint, pipeline against transformers' `generate`.

python -m benchmarks.end_to_end [VARIANT...]     a row per variant and decoder; the table goes to benchmarks/results/end_to_end.md

The vision graph is a real fp32 export, run by ONNX Runtime with the family's own preprocessing (`--tiling grid --reduce none`).
The decoder is transformers' text model without a cache ("torch"), and, where onnxruntime-genai's builder makes one from the
text model alone, its fp32 graph ("onnx"). A sequence stops early where the two best logits of transformers are nearer than 1e-3.
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
from tests.runnable import GAP, STEPS, Compared, Runnable
from vlm_edge.backends.onnx import decoder, export
from vlm_edge.core.checkpoint import open_checkpoint
from vlm_edge.models.text_weights import extract_text_model

OUT = Path(__file__).parent / "results/end_to_end.md"
SIZES = ((90, 61), (61, 90), (28, 28), (200, 45), (17, 120), (333, 250), (400, 7), (3, 200))
BUILDABLE = ("llama", "qwen2", "mistral")
"""Decoders that the builder makes from an extracted text model."""
HEAD = "| checkpoint | head | decoder | sequences | steps compared | mismatches | early stops | max error of logits |"


def main(names: list[str]) -> None:
    rows = [HEAD, "|" + " --- |" * HEAD.count(" | ") + " --- |"]
    print("\n".join(rows), flush=True)
    with patch.object(export, "trace", remembering(export.trace, {})):
        for name in names or runnable.VARIANTS:
            for tied in (False, True):
                for row in measured(name, tied=tied):
                    rows.append(row)
                    print(row, flush=True)
    tools = ", ".join(
        f"{tool} {metadata.version(tool)}" for tool in ("torch", "transformers", "onnxruntime", "onnxruntime-genai")
    )
    said = (__doc__ or "").partition("\n\n")[0]
    about = (
        f"{said}\n\n`python -m benchmarks.end_to_end`, {datetime.date.today()}, {tools}; {STEPS} steps, gap {GAP}.\n"
    )
    if not names:
        OUT.write_text(about + "\n" + "\n".join(rows) + "\n", "utf-8")


def questions() -> Iterator[tuple[str, list[np.ndarray]]]:
    """One image of each size, and pairs of them."""
    for seed, size in enumerate(SIZES):
        yield runnable.QUESTIONS[seed % 2], [photo(*size, seed)]
    for seed, (first, second) in enumerate(zip(SIZES, SIZES[3:], strict=False)):
        yield runnable.QUESTIONS[seed % 2], [photo(*first, 20 + seed), grey(*second)]


def measured(name: str, *, tied: bool) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        made = runnable.make(name, Path(folder), tied=tied, traced=True)
        head = "embedding" if tied else "own"
        yield row(name, head, "torch", [runnable.compare(made, *asked) for asked in questions()])
        if made.model.config.get_text_config().model_type in BUILDABLE:
            graph = build(made, Path(folder))
            yield row(name, head, "onnx", [runnable.compare(made, *asked, decoder=graph) for asked in questions()])


def build(made: Runnable, folder: Path) -> Path:
    """The decoder's graph, from what the checkpoint stores of it."""
    extract_text_model(open_checkpoint(folder / "checkpoint"), folder / "text")
    made.processor.tokenizer.save_pretrained(folder / "text")
    decoder.build_decoder(folder / "text", folder / "decoder", precision="fp32")
    return folder / "decoder" / decoder.GRAPH


def row(name: str, head: str, engine: str, found: list[Compared]) -> str:
    mismatches = sum(one.mismatch is not None for one in found)
    steps, stops = sum(one.steps for one in found), sum(one.stopped for one in found)
    error = max(one.max_error for one in found)
    return f"| {name} | {head} | {engine} | {len(found)} | {steps} | {mismatches} | {stops} | {error:.1e} |"


if __name__ == "__main__":
    main(sys.argv[1:])

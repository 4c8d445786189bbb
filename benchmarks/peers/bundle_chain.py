"""A bundle through this project's runtime: python -m benchmarks.peers.bundle_chain BUNDLE THREADS [KEEP]

KEEP: share of the image's tokens that stays, by `--reduce landmark`; without it every token. Its context is cut to what the other
engines' caches have, so that none pays for positions that nobody asks for.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.peers.chain import QUESTION, Asked, Parts, serve, step_times
from benchmarks.peers.decoding import CONTEXT
from benchmarks.peers.onnx_decoder import TARGET, BundleDecoder, facts, stored_dtype
from vlm_edge import AskOptions, Pipeline
from vlm_edge.core.bundle import open_bundle
from vlm_edge.pipeline.answering.encoders import open_encoder


class BundleChain:
    """Pipeline, or its encoder and engine."""

    def __init__(self, folder: Path, threads: int, keep: float | None) -> None:
        opened = open_bundle(folder)
        limits = replace(opened.manifest.limits, max_model_len=CONTEXT)
        self._bundle = replace(opened, manifest=replace(opened.manifest, limits=limits))
        self._threads = threads
        self._reduced = {"reduce": "none"} if keep is None else {"reduce": "landmark", "keep": keep}
        self._pipeline: Pipeline | None = None

    def ask(self, image: str, new: int) -> Asked:
        self._pipeline = self._pipeline or Pipeline.load(self._bundle, device=TARGET, threads=self._threads)
        self._pipeline.forget()
        options = AskOptions(tiling="none", **self._reduced, max_new_tokens=new, ignore_eos=True)
        started = time.perf_counter()
        answer = self._pipeline.ask(image, QUESTION, options)
        ended = time.perf_counter()
        # Decoding is what is done behind the first token, and last of all.
        first = ended - answer.timings_ms["decode"] / 1000
        ends = [first, *[ended] * (answer.tokens.generated - 1)]
        return step_times(started, ends, answer.tokens.prompt)

    def parts(self) -> Parts:
        self._pipeline = None
        encoder = open_encoder(self._bundle, TARGET, self._threads)
        decoder = BundleDecoder(self._bundle, self._threads)
        return Parts(facts(self._bundle), decoder, stored_dtype(self._bundle, "vision.graph"), encoder.encode)


if __name__ == "__main__":
    serve(BundleChain(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) if sys.argv[3:] else None))

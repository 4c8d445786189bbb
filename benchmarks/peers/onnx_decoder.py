"""A bundle's int4 decoder through this project's engine: python -m benchmarks.peers.onnx_decoder BUNDLE THREADS"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.peers.decoding import CONTEXT, Facts, serve
from vlm_edge.backends.onnx.engine import OnnxEngine
from vlm_edge.core.bundle import Bundle, open_bundle
from vlm_edge.core.embedding import EmbeddingTable

TARGET = "cpu"
ELEMENT_BITS = {"fp32": 32, "int8": 8, "int4": 4}


class BundleDecoder:
    """Embedding table and engine."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        text = bundle.manifest.model.text
        if text is None:
            raise SystemExit(f"{bundle.root} has no decoder")
        graph = bundle.path("llm.graph", target=TARGET)
        self._table = EmbeddingTable(bundle.path("llm.embedding"))
        self._engine = OnnxEngine(graph, text, target=TARGET, threads=threads, context=CONTEXT)

    def reset(self) -> None:
        self._engine.rewind(0)

    def forward(self, ids: Sequence[int]) -> np.ndarray:
        return self._engine.forward(self._table.rows(ids))


def facts(bundle: Bundle) -> Facts:
    """From the bundle's own record; all of a decoder's data are read for each token, the embedding is a file apart."""
    text = bundle.manifest.model.text
    assert text is not None
    cache = bundle.manifest.kv_cache(TARGET) or "fp32"
    weights, head, activations = _precision(bundle)
    return Facts(
        version=f"onnxruntime {onnxruntime.__version__}",
        weights=weights,
        head=head,
        cache=cache,
        activations=activations,
        vocabulary=text.vocab,
        read_bytes=bundle.path("llm.graph.data", target=TARGET).stat().st_size,
        position_bytes=2 * text.layers * text.kv_heads * text.head_dim * ELEMENT_BITS[cache] // 8,
    )


def stored_dtype(bundle: Bundle, role: str) -> str:
    """Of the file with a role, from the bundle's own record."""
    file = bundle.path(role, target=TARGET)
    return next(each.dtype for each in bundle.manifest.artifacts if bundle.root / each.path == file)


def _precision(bundle: Bundle) -> tuple[str, str, str]:
    """Of weights, lm_head and activations, in words; a decoder that was exported and not quantized has no report."""
    dtype = stored_dtype(bundle, "llm.graph")
    if dtype in ("fp32", "fp16"):
        return dtype, dtype, dtype
    report = json.loads((bundle.root / "reports/quantize.json").read_text())
    options = report["options"]
    zeros = "no zero points" if options["symmetric"] else "zero points"
    return f"int4, groups of {options['group_size']}, {zeros}", options["lm_head"], report["onnx"]["activations"]


def main(folder: str, threads: str) -> None:
    bundle = open_bundle(Path(folder))
    serve(facts(bundle), BundleDecoder(bundle, int(threads)))


if __name__ == "__main__":
    main(*sys.argv[1:])

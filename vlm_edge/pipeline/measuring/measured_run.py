"""A planned run in a process of its own, with the peak of resident memory in each phase.

python -m vlm_edge.pipeline.measuring.measured_run works on what a pipeline is made of (the same image reader, encoder, engine and
sampling), since a bundle may hold a tower alone. The order is the pipeline's; the prompt is visual tokens and random words. One
JSON object on standard input says what to run, one on standard output tells the peaks.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlm_edge.backends.onnx.session import share_arena
from vlm_edge.core import discover, host
from vlm_edge.core.bundle import Bundle, open_bundle
from vlm_edge.core.contracts import Floats, LlmEngine
from vlm_edge.core.embedding import EmbeddingTable
from vlm_edge.core.load import parse
from vlm_edge.core.shards import strict_json
from vlm_edge.core.specs import TextSpec
from vlm_edge.models import bundle_files
from vlm_edge.models.prompts import FamilyViews
from vlm_edge.pipeline.answering.encoders import open_encoder
from vlm_edge.pipeline.answering.options import Look
from vlm_edge.pipeline.answering.sampling import choose
from vlm_edge.pipeline.answering.tile_choice import choose_tiles
from vlm_edge.pipeline.answering.views import tiled
from vlm_edge.pipeline.machine import IMPORTED_LATE
from vlm_edge.vision import sources
from vlm_edge.vision.tiling import Tile

NEW_TOKENS = 8


@dataclass(frozen=True)
class Run:
    """bundle: its folder.  image: a file, or empty.  tiles: beside the global view, 0 for the whole image in one view;
    -1: the family's own way of cutting.

    prompt: positions to prefill; 0 where the bundle has no decoder.
    """

    bundle: str
    image: str
    images: int
    tiles: int
    prompt: int
    context: int
    threads: int


def measured_phases(run: Run) -> dict[str, int]:
    """Do it, and return the most resident bytes of each phase that took place."""
    peaks: dict[str, int] = {}
    bundle = open_bundle(Path(run.bundle))
    spec, backend = bundle.manifest.model, discover.backend("onnx")
    with _phase("load", peaks):
        share_arena()
        for name in IMPORTED_LATE:
            importlib.import_module(name)
        graph = bundle.path("llm.graph", target="cpu") if run.prompt else None
        engine: Any = backend.engine(graph, spec.text, "cpu", run.threads, run.context) if graph else None
        encoder: Any = open_encoder(bundle, "cpu", run.threads) if run.image else None
        table = bundle_files.embedding(bundle) if engine is not None else None
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(run.images if run.image else 0):
        with _phase("preprocess", peaks):
            arrays = _prepared(bundle, run)
            host.release_heap()
        with _phase("encode", peaks):
            features = encoder.encode({name: arrays[name] for name in encoder.inputs})
            kept.append(np.concatenate(list(features)) if features.ndim == 3 else features.copy())
        del arrays, features
    if engine is not None and table is not None:
        with _phase("prefill", peaks):
            logits = fed(engine, spec.text, _prompt(table, kept, run.prompt, rng))
        with _phase("decode", peaks):
            for _ in range(NEW_TOKENS):
                choose(logits, temperature=1.0, top_p=0.9, rng=rng)
                logits = fed(engine, spec.text, _words(table, 1, rng))
    return peaks


def fed(engine: LlmEngine, text: TextSpec, embeds: Floats) -> Floats:
    """Logits [V] behind embeddings [N, D], in one call; counted in three parts where a decoder wants positions."""
    if not text.mrope_sections:
        return engine.forward(embeds)
    counted = np.arange(engine.length, engine.length + len(embeds), dtype=np.int64)
    return engine.forward(embeds, np.stack([counted] * 3))


def _prompt(table: EmbeddingTable, features: Sequence[Floats], tokens: int, rng: np.random.Generator) -> Floats:
    """Embeddings [tokens, D]: the visual ones, as far as they fit, and random words."""
    prompt = np.empty((tokens, table.shape[1]), np.float32)
    end = 0
    for visual in features:
        part = visual.reshape(-1, visual.shape[-1])[: tokens - end]
        prompt[end : end + len(part)] = part
        end += len(part)
    prompt[end:] = _words(table, tokens - end, rng)
    return prompt


def _words(table: EmbeddingTable, count: int, rng: np.random.Generator) -> Floats:
    """Embeddings [count, D] of random words."""
    return table.rows(rng.integers(0, table.shape[0], count).tolist())


def _prepared(bundle: Bundle, run: Run) -> dict[str, Any]:
    """The image read and cut as the run would do it."""
    spec = bundle.manifest.model
    pixels = sources.load_image(run.image).pixels
    rules = discover.family_part(spec.family, "prompt").RULES
    config, preprocessor = (_object(bundle.root / name) for name in ("config.json", "preprocessor_config.json"))
    # the tokenizer that completes settings tells how long markers are, which is nothing to the encoder
    settings = rules.refine(rules.settings(config, preprocessor), spec, None)
    views = FamilyViews(rules, settings)
    if run.tiles > 0 or (run.tiles == 0 and discover.family(spec.family).free_tiles):
        chosen = choose_tiles(pixels, spec.geometry, Look("auto", run.tiles, "none", 1.0, 1.0, 0))
        # a page that is smaller than what is planned has fewer
        side, (height, width) = spec.geometry.view_px, pixels.shape[:2]
        chosen = chosen or (Tile(0, 0, min(side, width), min(side, height), 0.0),)
        repeated = tuple(itertools.islice(itertools.cycle(chosen), run.tiles))
        return dict(tiled(pixels, repeated, views).arrays)
    return dict(views.prepare(pixels, whole=run.tiles == 0).arrays)


def _object(path: Path) -> Any:
    return strict_json(path.read_text("utf-8"), str(path))


@contextmanager
def _phase(name: str, peaks: dict[str, int]) -> Iterator[None]:
    """Record the most resident memory between here and the block's end."""
    if peaks:  # what was held before the first phase belongs to it
        host.reset_peak_rss()
    yield
    peaks[name] = max(peaks.get(name, 0), host.peak_rss_bytes())


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measured_phases(parse(json.loads(sys.stdin.read()), Run, "standard input"))))

"""Is a decoder graph the function that its checkpoint is? A few prompts and decode steps, stored with the logits to expect."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.onnx.parity import Limit, Parity, measure
from vlm_edge.core.bundle import atomic_write
from vlm_edge.core.contracts import Floats, LlmEngine, Positions
from vlm_edge.errors import DamagedBundle

LAYER_VALUES = 256
"""Values that are kept of a layer, at equal distances: enough to tell where a graph leaves its reference."""
COMPONENT = "llm"
COLUMNS = 8192
"""Logits that are kept of a row, at equal distances: a bundle is not to carry megabytes of them."""


@dataclass(frozen=True)
class DecoderReferences:
    """Sequences, how much of each is prompt, and the logits that follow the prompt and each token after it.

    embeds: fp32 [N, L, D], values that fp16 holds exactly.  positions: int64 [N, 3, L] for three-part rotary positions.
    prompt: rows that are read in one call; the rest follow one by one.  columns: int64 [C], the entries of the vocabulary whose
    logits were kept.  logits: fp32 [N, L - prompt + 1, C].
    layers: fp32 [layers, LAYER_VALUES or all there are], samples of the hidden state behind each layer, of the prompt of the last
    sequence; None in bundles that were made without.
    """

    embeds: Floats
    prompt: int
    columns: NDArray[np.int64]
    logits: Floats
    positions: Positions | None = None
    layers: Floats | None = None

    @property
    def sampled(self) -> int:
        """Which sequence `layers` was taken on: the one that holds an image's stretch too."""
        return len(self.embeds) - 1


def keep(
    embeds: Floats,
    prompt: int,
    logits: Floats,
    positions: Positions | None = None,
    layers: Sequence[Floats] = (),
) -> DecoderReferences:
    """References out of all logits [N, L - prompt + 1, V]; embeds, and layers if there are any, as in DecoderReferences."""
    columns = np.unique(np.linspace(0, logits.shape[-1] - 1, COLUMNS).round().astype(np.int64))
    kept = np.ascontiguousarray(logits[..., columns])
    return DecoderReferences(embeds, prompt, columns, kept, positions, np.stack(layers) if layers else None)


def layer_sample(hidden: NDArray[Any]) -> Floats:
    """LAYER_VALUES values, or all there are, of a hidden state [L, D]."""
    flat = hidden.reshape(-1)
    places = np.linspace(0, flat.size - 1, min(LAYER_VALUES, flat.size)).round().astype(np.int64)
    found: Floats = flat[places].astype(np.float32)
    return found


def compare(engine: LlmEngine, references: DecoderReferences, dtype: str, *, limit: Limit | None = None) -> Parity:
    """Prefill and decode every sequence and compare each row of logits; the caller judges by `.ok` or parity.require.

    engine: may hold a sequence, which is lost.  dtype: of the graph's weights, which chooses the limit; limit: instead of it.
    """
    measured, expected = [], []
    for index, embeds in enumerate(references.embeds):
        positions = None if references.positions is None else references.positions[index]
        rows = decode_rows(engine, embeds, references.prompt, positions)
        if references.columns.max(initial=0) >= len(rows[0]):
            raise DamagedBundle("the references are those of another decoder", remedy="export the model again")
        measured += [logits[references.columns] for logits in rows]
        expected += [*references.logits[index]]
    return measure(COMPONENT, dtype, measured, expected, limit=limit)


def decode_rows(engine: LlmEngine, embeds: Floats, prompt: int, positions: Positions | None) -> list[Floats]:
    """Logits [V] after the first `prompt` rows of one sequence [L, D], and after each that follows; a held sequence is lost."""
    engine.rewind(0)
    parts = [slice(0, prompt), *(slice(row, row + 1) for row in range(prompt, len(embeds)))]
    return [
        engine.forward(embeds[part]) if positions is None else engine.forward(embeds[part], positions[:, part])
        for part in parts
    ]


def save(references: DecoderReferences, path: Path) -> None:
    """Write an .npz, atomically; the embeddings as fp16."""
    arrays: dict[str, NDArray[Any]] = {
        "embeds": references.embeds.astype(np.float16),
        "prompt": np.array(references.prompt),
        "columns": references.columns,
        "logits": references.logits,
    }
    if references.positions is not None:
        arrays["positions"] = references.positions
    if references.layers is not None:
        arrays["layers"] = references.layers
    with atomic_write(path) as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # the stub takes the names for its own options


def load(path: Path) -> DecoderReferences:
    """Read what `save` wrote; raises DamagedBundle."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            references = DecoderReferences(
                stored["embeds"].astype(np.float32),
                int(stored["prompt"]),
                stored["columns"].astype(np.int64),
                stored["logits"].astype(np.float32),
                stored["positions"].astype(np.int64) if "positions" in stored else None,
                stored["layers"].astype(np.float32) if "layers" in stored else None,
            )
        _check(references)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as cause:
        raise DamagedBundle(f"{path} holds no references: {cause}", remedy="export the model again") from cause
    return references


def _check(references: DecoderReferences) -> None:
    sequences, length = references.embeds.shape[:2]
    wanted = (sequences, length - references.prompt + 1, len(references.columns))
    positions = references.positions
    if not 1 <= references.prompt <= length or references.logits.shape != wanted or references.embeds.ndim != 3:
        raise ValueError("its arrays do not belong together")
    if positions is not None and positions.shape != (sequences, 3, length):
        raise ValueError("its positions are not those of its embeddings")
    sampled = min(LAYER_VALUES, references.prompt * references.embeds.shape[2])
    if references.layers is not None and references.layers.shape[1:] != (sampled,):
        raise ValueError("its samples of layers are not those of its prompt")

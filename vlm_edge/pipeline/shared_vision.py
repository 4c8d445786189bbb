"""One image asked in many ways: the vision encoder runs once for each batch of views, and its time is counted every time."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.contracts import EncoderRunner, Floats
from vlm_edge.pipeline.answer import Answer
from vlm_edge.pipeline.options import AskOptions
from vlm_edge.pipeline.run import Pipeline

BATCHES = 2
"""As many as one way of choosing tiles needs: by novelty the whole image comes apart from its tiles."""


class RememberingEncoder:
    """An encoder that gives the last few results again for exactly the same arrays.

    A batch of other views is encoded anew, those that it shares with an earlier one too: a graph may round otherwise for
    batches of another size.  saved_ms: what the results that were given again took when they were computed.
    """

    def __init__(self, encoder: EncoderRunner) -> None:
        self._encoder = encoder
        self._known: OrderedDict[bytes, tuple[Floats, float]] = OrderedDict()
        self.saved_ms = 0.0
        self.runs = 0

    @property
    def inputs(self) -> Sequence[str]:
        """The encoder's."""
        return self._encoder.inputs

    def encode(self, pixels: Floats | Mapping[str, NDArray[Any]]) -> Floats:
        """As the encoder itself does it, bit for bit."""
        key = _digest(pixels)
        known = self._known.get(key)
        if known is not None:
            self.saved_ms += known[1]
            return known[0].copy()
        started = time.perf_counter()
        features = self._encoder.encode(pixels)
        self.runs += 1
        self._known[key] = (features.copy(), 1000 * (time.perf_counter() - started))
        while len(self._known) > BATCHES:
            self._known.popitem(last=False)
        return features


def _digest(pixels: Floats | Mapping[str, NDArray[Any]]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name, array in sorted((pixels if isinstance(pixels, Mapping) else {"": pixels}).items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


class SharedVision:
    """A pipeline whose encoder remembers, as an Asker; a time that was saved is added to `vision` and `total` of the answer."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.encoder: RememberingEncoder | None = None
        self._pipeline = pipeline
        pipeline.wrap_encoder(self._remembering)

    def _remembering(self, encoder: EncoderRunner) -> EncoderRunner:
        self.encoder = RememberingEncoder(encoder)
        return self.encoder

    def ask(self, image: Path | list[Path], question: str, options: AskOptions | None = None) -> Answer:
        """The pipeline's own answer, with the times that it would have taken alone."""
        before = self._saved()
        answer = self._pipeline.ask(image, question, options)
        saved = self._saved() - before
        if not saved:
            return answer
        told = answer.timings_ms
        return replace(answer, timings_ms={**told, "vision": told["vision"] + saved, "total": told["total"] + saved})

    def _saved(self) -> float:
        return 0.0 if self.encoder is None else self.encoder.saved_ms

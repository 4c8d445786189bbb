"""What was decoded, chosen and encoded of the last image, so that asking about it in another way does not do it again."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.contracts import EncoderRunner, Floats
from vlm_edge.core.layout import Box
from vlm_edge.pipeline.answering.options import GIVEN, Look
from vlm_edge.vision.raster import Picture
from vlm_edge.vision.tiling import Tile

BATCHES = 2
"""As many as one way of choosing tiles needs: by novelty the whole image comes apart from its tiles."""
MOST_PIXEL_BYTES = 256 << 20
"""A decoded image that is larger is not held beyond its use: a plan counts it for a moment only."""
TILINGS = 8


class ViewMemory:
    """Decoded pixels, chosen tiles and encoded batches of the image asked about last.

    saved_ms: by stage of an answer's times, what would have been spent again without it, as measured when it was spent.
    """

    def __init__(self) -> None:
        self.saved_ms = {"preprocess": 0.0, "saliency": 0.0, "vision": 0.0}
        self._pixels: tuple[str, Picture, float] | None = None
        self._tiles: OrderedDict[tuple[str, Look], tuple[tuple[Box, ...], float]] = OrderedDict()

    def pixels(self, key: str, decode: Callable[[], Picture]) -> Picture:
        """The pixels of that key, decoded if they are not the last ones."""
        if self._pixels is not None and self._pixels[0] == key:
            self.saved_ms["preprocess"] += self._pixels[2]
            return self._pixels[1]
        self._pixels = None
        started = time.perf_counter()
        pixels = decode()
        if not isinstance(pixels, np.ndarray) or pixels.nbytes <= MOST_PIXEL_BYTES:
            self._pixels = (key, pixels, 1000 * (time.perf_counter() - started))
        return pixels

    def look(self, content: str, look: Look) -> Look:
        """The Look itself, or with the tiles that it chose of this image before."""
        known = self._tiles.get((content, _tiling(look)))
        if known is None:
            return look
        self.saved_ms["saliency"] += known[1]
        return replace(look, tiling=GIVEN, tiles=known[0], saliency="", saliency_model=None)

    def keep_tiles(self, content: str, look: Look, tiles: Sequence[Tile], took_ms: float) -> None:
        """Remember what a Look with saliency chose of an image."""
        key = (content, _tiling(look))
        if look.saliency and key not in self._tiles:
            self._tiles[key] = (tuple(tile.box for tile in tiles), took_ms)
            while len(self._tiles) > TILINGS:
                self._tiles.popitem(last=False)

    def encoder(self, encoder: EncoderRunner) -> RememberingEncoder:
        """An encoder that adds to saved_ms."""
        return RememberingEncoder(encoder, self.saved_ms)


def _tiling(look: Look) -> Look:
    """A Look without what becomes of the tokens."""
    return replace(look, reduce="none", keep=1.0, threshold=1.0, seed=0)


class RememberingEncoder:
    """An encoder that gives the last few results again for exactly the same arrays.

    A batch of other views is encoded anew, those that it shares with an earlier one too: a graph may round otherwise for
    batches of another size.
    """

    def __init__(self, encoder: EncoderRunner, saved_ms: dict[str, float]) -> None:
        self._encoder = encoder
        self._saved_ms = saved_ms
        self._known: OrderedDict[bytes, tuple[Floats, float]] = OrderedDict()

    @property
    def inputs(self) -> Sequence[str]:
        """The encoder's."""
        return self._encoder.inputs

    def encode(self, pixels: Floats | Mapping[str, NDArray[Any]]) -> Floats:
        """As the encoder itself does it, bit for bit."""
        key = _digest(pixels)
        known = self._known.get(key)
        if known is not None:
            self._saved_ms["vision"] += known[1]
            return known[0].copy()
        started = time.perf_counter()
        features = self._encoder.encode(pixels)
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

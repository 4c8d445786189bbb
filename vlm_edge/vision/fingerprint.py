"""What identifies an image: a hash of its file's bytes, or of its pixels where there is no file."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from vlm_edge.vision.sources import Source, open_stream

CHUNK_BYTES = 1 << 20


def fingerprint(source: Source) -> str:
    """BLAKE2b, hex, of an image's encoded bytes or, for arrays and PIL images, of shape, mode and pixels.

    Raises BadImage when the source cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(source, np.ndarray | Image.Image):
        pixels = np.ascontiguousarray(source)
        mode = source.mode if isinstance(source, Image.Image) else ""
        digest.update(f"{pixels.shape} {pixels.dtype} {mode}".encode())
        digest.update(pixels.data)
        return digest.hexdigest()
    with open_stream(source) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()

"""What identifies an image: a hash of its file's bytes, or of its pixels as they are decoded where there is no file."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from vlm_edge.vision.sources import Source, load_image, open_stream

CHUNK_BYTES = 1 << 20
_ANY_PIXELS = 1 << 62


def fingerprint(source: Source) -> str:
    """BLAKE2b, hex, of an image's encoded bytes or, for arrays and PIL images, of size and decoded RGB pixels.

    A PIL image's own memory would not do: palette, transparency and orientation decide what becomes of it. Its stored size
    is hashed too, since tiles are told in it.  Raises BadImage when the source cannot be read or decoded.
    """
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(source, np.ndarray | Image.Image):
        size = source.size if isinstance(source, Image.Image) else source.shape
        pixels = load_image(source, max_pixels=_ANY_PIXELS).pixels  # it is in memory: whoever made it allowed its size
        digest.update(f"{size} {pixels.shape}".encode())
        digest.update(pixels.data)
        return digest.hexdigest()
    with open_stream(source) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()

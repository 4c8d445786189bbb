"""A projector file (projector.py) in llama.cpp's libmtmd, which encodes an image and lets a decoder read it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import gguf
import numpy as np
from llama_cpp import mtmd_cpp as mtmd

from benchmarks.peers.llama_cpp.decoder import LlamaCpp
from benchmarks.peers.llama_cpp.projector import as_bytes


class LlamaVision:
    """libmtmd with its own defaults, beside the decoder that its features are meant for."""

    def __init__(self, path: str, decoder: LlamaCpp, threads: int) -> None:
        self._path, self._decoder = path, decoder
        settings = mtmd.mtmd_context_params_default()
        settings.n_threads = threads
        self._context = mtmd.mtmd_init_from_file(path.encode(), decoder.model, settings)
        if not self._context:
            raise SystemExit(f"llama.cpp cannot load {path}")

    def read(self, image: str, position: int) -> int:
        """Encode an image file and let the decoder read it at a position; the position behind it."""
        bitmap = mtmd.mtmd_helper_bitmap_init_from_file(self._context, image.encode(), False)
        if not bitmap:
            raise SystemExit(f"llama.cpp cannot open {image}")
        behind = ctypes.c_int32()
        with self._chunk(bitmap) as chunk:
            failed = mtmd.mtmd_helper_eval_chunk_single(
                self._context,
                self._decoder.context,
                chunk,
                position,
                0,
                self._decoder.batch,
                False,
                ctypes.byref(behind),
            )
        if failed:
            raise SystemExit("llama.cpp failed to read an image")
        return behind.value

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Normalised pixels [V, 3, S, S] -> projected features [V, P, D]; one view after the other, as libmtmd does it for a CLIP.

        It takes pixels of 8 bits alone and normalises them itself, which belongs to its time and costs little beside the tower.
        """
        levels = as_bytes(pixels, *self._normalised_by)
        return np.stack([self._encode_one(each) for each in levels])

    @cached_property
    def _normalised_by(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation [3]; read from the file for the parts alone, whose memory is not the question's."""
        fields = gguf.GGUFReader(self._path).fields
        mean, std = (np.array(fields[f"clip.vision.image_{name}"].contents(), np.float32) for name in ("mean", "std"))
        return mean, std

    def _encode_one(self, image: np.ndarray) -> np.ndarray:
        height, width, _ = image.shape
        data = (ctypes.c_ubyte * image.size).from_buffer_copy(image.tobytes())
        with self._chunk(mtmd.mtmd_bitmap_init(width, height, data)) as chunk:
            if mtmd.mtmd_encode_chunk(self._context, chunk):
                raise SystemExit("llama.cpp failed to encode an image")
            shape = mtmd.mtmd_input_chunk_get_n_tokens(chunk), self._decoder.width
            return np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(self._context), shape).copy()

    @contextmanager
    def _chunk(self, bitmap: Any) -> Iterator[Any]:
        """A bitmap, which this frees, resized and normalised."""
        marker = mtmd.mtmd_default_marker()
        text = mtmd.mtmd_input_text(marker, len(marker), False, True)
        bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        chunks = mtmd.mtmd_input_chunks_init()
        try:
            if mtmd.mtmd_tokenize(self._context, chunks, ctypes.byref(text), bitmaps, 1):
                raise SystemExit("llama.cpp failed to prepare an image")
            yield mtmd.mtmd_input_chunks_get(chunks, 0)
        finally:
            mtmd.mtmd_input_chunks_free(chunks)
            mtmd.mtmd_bitmap_free(bitmap)

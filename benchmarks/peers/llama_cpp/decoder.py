"""A GGUF file in llama.cpp, timed on request: python -m benchmarks.peers.llama_cpp.decoder MODEL.gguf THREADS

Runs in llama.cpp's own environment (setup.sh). Its defaults are kept: batches of 512, a KV cache in F16, flash attention where it
sees fit, and weights mapped from the file, whose pages count as this process's memory.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

import gguf
import llama_cpp
import numpy as np

from benchmarks.peers.decoding import CONTEXT, Facts, serve

F16_BYTES = 2


class LlamaCpp:
    """One sequence in one context. model, context: llama.cpp's own handles; batch: the most tokens that it takes in one call."""

    def __init__(self, path: str, threads: int) -> None:
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = self.batch = CONTEXT
        settings.n_threads = settings.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise SystemExit("llama.cpp has no context to give")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.layers = llama_cpp.llama_model_n_layer(self.model)
        self.width = llama_cpp.llama_model_n_embd(self.model)
        head = self.width // llama_cpp.llama_model_n_head(self.model)
        self.cache_width = llama_cpp.llama_model_n_head_kv(self.model) * head

    def reset(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)

    def read(self, ids: Sequence[int]) -> None:
        """Append tokens whose logits nobody asks for."""
        self._decode(ids, last_logits=False)

    def forward(self, ids: Sequence[int]) -> np.ndarray:
        self._decode(ids, last_logits=True)
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (self.vocabulary,)).copy()

    def _decode(self, ids: Sequence[int], *, last_logits: bool) -> None:
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        # A batch made so gives logits for its last token alone.
        batch = llama_cpp.llama_batch_get_one(tokens, len(ids))
        if not last_logits:
            batch.logits = (ctypes.c_int8 * len(ids))()
        if llama_cpp.llama_decode(self.context, batch):
            raise SystemExit("llama.cpp failed to decode")


def facts(path: str, decoder: LlamaCpp) -> Facts:
    """From the file's own table of tensors."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    embedding = tensors["token_embd.weight"]
    head = tensors.get("output.weight", embedding)
    layers = {t.tensor_type.name for t in tensors.values() if t.name.startswith("blk.") and len(t.shape) > 1}
    others = sum(int(t.n_bytes) for t in tensors.values() if t is not embedding and t is not head)
    rounded = layers != {"F16"}
    return Facts(
        version=f"llama-cpp-python {llama_cpp.__version__}",
        weights=", ".join(sorted(layers)) + (", groups of 32, symmetric" if rounded else ""),
        head=head.tensor_type.name,
        cache="fp16",
        activations="int8" if rounded else "fp16",
        vocabulary=decoder.vocabulary,
        read_bytes=others + int(head.n_bytes),
        position_bytes=2 * decoder.layers * decoder.cache_width * F16_BYTES,
    )


def main(path: str, threads: str) -> None:
    decoder = LlamaCpp(path, int(threads))
    serve(facts(path, decoder), decoder)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""llama.cpp in peers/compare.py: python -m benchmarks.peers.llama_cpp.chain MODEL.gguf THREADS [PROJECTOR.gguf TOKENIZER.json]

PROJECTOR: a file of projector.py, for which llama.cpp must have libmtmd; without one its decoder alone is measured. TOKENIZER: the
checkpoint's, since MODEL holds no vocabulary.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchmarks.peers.chain import Asked, Parts, prompt, serve, step_times
from benchmarks.peers.llama_cpp.decoder import LlamaCpp, facts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from benchmarks.peers.llama_cpp.vision import LlamaVision

PLACE = "<image>"


class DecoderOnly:
    """Without a projector file there is no question about an image."""

    def __init__(self, path: str, threads: int) -> None:
        self._path, self._threads = path, threads

    def ask(self, image: str, new: int) -> Asked:  # noqa: ARG002 (the protocol's)
        raise SystemExit("only llama.cpp's decoder is measured")

    def parts(self) -> Parts:
        decoder = LlamaCpp(self._path, self._threads)
        return Parts(facts(self._path, decoder), decoder)


class LlamaChain:
    """One model and one tower for the chain and for its parts."""

    def __init__(self, path: str, decoder: LlamaCpp, vision: LlamaVision, tokenizer: Tokenizer) -> None:
        self._path, self._decoder, self._vision, self._tokenizer = path, decoder, vision, tokenizer

    @classmethod
    def load(cls, path: str, threads: int, projector: str, tokenizer: str) -> LlamaChain:
        from tokenizers import Tokenizer

        from benchmarks.peers.llama_cpp.vision import LlamaVision

        decoder = LlamaCpp(path, threads)
        return cls(path, decoder, LlamaVision(projector, decoder, threads), Tokenizer.from_file(tokenizer))

    def ask(self, image: str, new: int) -> Asked:
        started = time.perf_counter()
        stream = self.answer(image)
        known = [(next(stream)[0], time.perf_counter()) for _ in range(new)]
        return step_times(started, [end for _, end in known], known[0][0])

    def answer(self, image: str) -> Iterator[tuple[int, int]]:
        """Greedy tokens without an end, each behind the number of tokens that the prompt has. Text and image are read apart."""
        self._decoder.reset()
        ids = self._tokenizer.encode(prompt(f"{PLACE}\n")).ids
        at = ids.index(self._tokenizer.token_to_id(PLACE))
        self._decoder.read(ids[:at])
        behind = self._vision.read(image, at)
        rest = ids[at + 1 :]
        logits = self._decoder.forward(rest)
        while True:
            token = int(logits.argmax())
            yield behind + len(rest), token
            logits = self._decoder.forward([token])

    def parts(self) -> Parts:
        return Parts(facts(self._path, self._decoder), self._decoder, "fp16", self._vision.encode)


if __name__ == "__main__":
    model, threads = sys.argv[1], int(sys.argv[2])
    serve(LlamaChain.load(model, threads, *sys.argv[3:]) if sys.argv[3:] else DecoderOnly(model, threads))

"""llama.cpp's part in peers/compare.py, its decoder: python -m benchmarks.peers.llama_cpp.chain MODEL.gguf THREADS"""

from __future__ import annotations

import sys

from benchmarks.peers.chain import Asked, Parts, serve
from benchmarks.peers.llama_cpp.decoder import LlamaCpp, facts


class DecoderOnly:
    """Without a projector file there is no question about an image."""

    def __init__(self, path: str, threads: int) -> None:
        self._path, self._threads = path, threads

    def ask(self, image: str, new: int) -> Asked:  # noqa: ARG002 (the protocol's)
        raise SystemExit("only llama.cpp's decoder is measured")

    def parts(self) -> Parts:
        decoder = LlamaCpp(self._path, self._threads)
        return Parts(facts(self._path, decoder), decoder)


if __name__ == "__main__":
    serve(DecoderOnly(sys.argv[1], int(sys.argv[2])))

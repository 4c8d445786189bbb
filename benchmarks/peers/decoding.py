"""How every decoder of decoder_speed.py and peers/compare.py is timed: it runs in each one's own environment, with NumPy alone.

A worker describes its engine in one line of JSON, then answers `run PROMPT NEW` with the times of one greedy continuation, and
`logits PROMPT FILE` with FILE. Token ids are the same for every engine; looking up their embeddings belongs to the times.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

FIRST_ID = 3
"""Of the ids that prompts are made of: those before it are special tokens."""
CONTEXT = 1024
"""Positions that every engine's cache has, or grows to."""
WARM_UP = 8


@dataclass(frozen=True)
class Facts:
    """What is compared. weights, head, cache: their precision in words; activations: what products are computed from.

    read_bytes: decoder layers, norms and lm_head as stored, all of which each new token reads; position_bytes: of the KV cache for
    one position.
    """

    version: str
    weights: str
    head: str
    cache: str
    activations: str
    vocabulary: int
    read_bytes: int
    position_bytes: int


class Decoder(Protocol):
    """A decoder with a cache of CONTEXT positions."""

    def reset(self) -> None:
        """Forget every position."""

    def forward(self, ids: Sequence[int]) -> np.ndarray:
        """Append tokens; logits [V] of the last one."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one prompt and of the tokens after it; peak_bytes: the most memory that the process has held so far."""

    prefill: float
    decode: float
    peak_bytes: int


def prompt_ids(length: int, vocabulary: int) -> list[int]:
    """Token ids that are the same in every environment."""
    return np.random.RandomState(0).randint(FIRST_ID, vocabulary, length).tolist()


def time_once(decoder: Decoder, ids: Sequence[int], new: int) -> Timing:
    """Prefill, then `new` steps of one token each."""
    decoder.reset()
    start = time.perf_counter()
    logits = decoder.forward(ids)
    prefilled = time.perf_counter()
    for _ in range(new):
        logits = decoder.forward([int(logits.argmax())])
    return Timing(prefilled - start, time.perf_counter() - prefilled, peak_bytes())


def peak_bytes() -> int:
    """Peak resident memory; of this program alone, which getrusage's figure is not: it begins with the parent's."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:"))


def serve(facts: Facts, decoder: Decoder) -> None:
    """Answer standard input until it ends."""
    time_once(decoder, prompt_ids(WARM_UP, facts.vocabulary), WARM_UP)
    print(json.dumps(asdict(facts)), flush=True)
    for line in sys.stdin:
        order, length, argument = line.split(maxsplit=2)
        ids = prompt_ids(int(length), facts.vocabulary)
        if order == "run":
            print(json.dumps(asdict(time_once(decoder, ids, int(argument)))), flush=True)
        else:
            decoder.reset()
            np.save(argument.strip(), decoder.forward(ids))
            print(argument.strip(), flush=True)

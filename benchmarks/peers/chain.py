"""How every engine of peers/compare.py is asked: this file runs in each one's own environment and needs NumPy alone.

A worker prints `ready` and answers each line, a JSON object with an `order`, with a line of JSON. It holds the whole chain (an
image and a question) or its parts (vision tower and decoder), never both: peak memory is the chain's as long as nothing else was
ordered. What is not there is loaded when it is first asked for, and what an order does for the first time warms it up.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from benchmarks.peers.decoding import Decoder, Facts, peak_bytes, prompt_ids, time_once

QUESTION = "what is the total?"
Encode = Callable[[np.ndarray], np.ndarray]
"""Normalised pixels [V, 3, S, S] of V views -> projected features [V, P, D]."""


@dataclass(frozen=True)
class Asked:
    """ttft_ms: image file and question to the first token. token_ms: of each that followed. prompt_tokens: image included.

    peak_bytes: the most memory that the process has held so far.
    """

    ttft_ms: float
    token_ms: float
    prompt_tokens: int
    peak_bytes: int


@dataclass(frozen=True)
class Parts:
    """vision: the precision of the tower's weights and products in words; no encode: the engine has no tower here."""

    facts: Facts
    decoder: Decoder
    vision: str = ""
    encode: Encode | None = None


class Chain(Protocol):
    """An engine."""

    def ask(self, image: str, new: int) -> Asked:
        """The greedy answer to QUESTION about an image file, of exactly `new` tokens; nothing is remembered from before."""

    def parts(self) -> Parts:
        """The tower and a decoder, in place of what `ask` holds."""


def prompt(image: str) -> str:
    """What every engine reads, the template of benchmarks/shapes.py filled in. image: what becomes a placeholder and a newline."""
    return f"USER: {image}{QUESTION} ASSISTANT:"


def step_times(started: float, ends: list[float], prompt_tokens: int) -> Asked:
    """From the times at which tokens were known, in seconds."""
    following = max(1, len(ends) - 1)
    return Asked(1000 * (ends[0] - started), 1000 * (ends[-1] - ends[0]) / following, prompt_tokens, peak_bytes())


def serve(chain: Chain) -> None:
    """Answer standard input until it ends."""
    print("ready", flush=True)
    parts: Parts | None = None
    for line in sys.stdin:
        order = json.loads(line)
        if order["order"] == "ask":
            answer = asdict(chain.ask(order["image"], order["new"]))
        else:
            parts = parts or chain.parts()
            answer = ANSWERS[order["order"]](parts, order)
        print(json.dumps(answer), flush=True)


def _facts(parts: Parts, _order: dict[str, Any]) -> Any:
    return asdict(parts.facts) | {"vision": parts.vision}


def _features(parts: Parts, order: dict[str, Any]) -> Any:
    """Of the first view, saved."""
    assert parts.encode
    np.save(order["out"], parts.encode(np.load(order["pixels"])[:1]))


def _vision(parts: Parts, order: dict[str, Any]) -> Any:
    """Milliseconds for a number of views in one call."""
    assert parts.encode
    pixels = np.load(order["pixels"])[: order["views"]]
    start = time.perf_counter()
    parts.encode(pixels)
    return 1000 * (time.perf_counter() - start)


def _logits(parts: Parts, order: dict[str, Any]) -> Any:
    """Of a prompt's last token, saved."""
    parts.decoder.reset()
    np.save(order["out"], parts.decoder.forward(prompt_ids(order["prompt"], parts.facts.vocabulary)))


def _run(parts: Parts, order: dict[str, Any]) -> Any:
    """Times of one greedy continuation."""
    ids = prompt_ids(order["prompt"], parts.facts.vocabulary)
    return asdict(time_once(parts.decoder, ids, order["new"]))


ANSWERS: dict[str, Callable[[Parts, dict[str, Any]], Any]] = {
    "facts": _facts, "features": _features, "vision": _vision, "logits": _logits, "run": _run,
}  # fmt: skip

"""Many small attempts in forked children, each with a time limit, a memory limit and a verdict.

A child works through a stretch of numbers and says what it begins, so that one that crashes or hangs costs the attempt that it was
at and no other. What an attempt may raise is VlmEdgeError, with a remedy; anything else is a traceback to somebody.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NoReturn

from vlm_edge.core import host
from vlm_edge.errors import VlmEdgeError

SECONDS = 10.0
"""Of processor time, so that a busy machine makes no hang."""
SILENCE_S = 120.0
"""Of the clock, after which a child that neither works nor ends is killed."""
STRETCH = 250


@dataclass(frozen=True)
class Verdict:
    """fault: empty, or traceback, hang, memory, message or crash.  what: accepted or refused; told: more about a fault."""

    number: int
    what: str
    fault: str = ""
    told: str = ""
    seconds: float = 0.0
    grown_bytes: int = 0


@dataclass
class Tally:
    """Verdicts, counted."""

    what: Counter[str] = field(default_factory=Counter)
    faults: list[Verdict] = field(default_factory=list)
    slowest_s: float = 0.0
    grown_bytes: int = 0

    def add(self, verdict: Verdict) -> None:
        self.what[verdict.what] += 1
        self.slowest_s = max(self.slowest_s, verdict.seconds)
        self.grown_bytes = max(self.grown_bytes, verdict.grown_bytes)
        if verdict.fault:
            self.faults.append(verdict)


Attempt = Callable[[random.Random], int]
"""Tries one input; returns the bytes that it may have taken, and raises VlmEdgeError where the input is refused.

An error may carry `allowed_bytes` itself.
"""


class _Hang(BaseException):
    """The alarm; no handler of the product's catches it."""


def run(attempt: Attempt, numbers: range, seed: str, allowed_bytes: int) -> Tally:
    """All numbers, each with its own random source.  allowed_bytes: of an input that is refused."""
    tally, begin = Tally(), numbers.start
    while begin < numbers.stop:
        end = min(begin + STRETCH, numbers.stop)
        for verdict in _stretch(attempt, range(begin, end), seed, allowed_bytes):
            tally.add(verdict)
            begin = verdict.number + 1
    return tally


def _stretch(attempt: Attempt, numbers: range, seed: str, allowed_bytes: int) -> Iterator[Verdict]:
    """Verdicts of one child; the last is about the attempt that ended it, if one did."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        with os.fdopen(writer, "wb", buffering=0) as stream:
            _work(attempt, numbers, seed, allowed_bytes, stream)
    os.close(writer)
    at, killed = numbers.start, False
    with os.fdopen(reader, "rb") as stream:
        while True:
            ready, _, _ = select.select([stream], [], [], SILENCE_S)
            if not ready:
                os.kill(child, signal.SIGKILL)
                killed = True
            line = stream.readline()
            if not line:
                break
            verdict = Verdict(**json.loads(line))
            at = verdict.number + 1
            yield verdict
    status = os.waitpid(child, 0)[1]
    if at < numbers.stop:
        fault = "hang" if killed else "crash"
        yield Verdict(at, "none", fault, f"the process ended with {status}")


def _work(attempt: Attempt, numbers: range, seed: str, allowed_bytes: int, stream: BinaryIO) -> NoReturn:
    def ring(*_: Any) -> None:
        raise _Hang

    signal.signal(signal.SIGPROF, ring)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where libraries say what they think of a file
    for number in numbers:
        verdict = _judged(attempt, number, seed, allowed_bytes)
        stream.write(json.dumps(vars(verdict)).encode() + b"\n")
    os._exit(0)


def _judged(attempt: Attempt, number: int, seed: str, allowed_bytes: int) -> Verdict:
    rng = random.Random(f"{seed} {number}")
    host.reset_peak_rss()
    before, started = host.rss_bytes(), time.process_time()
    what, fault, told = "accepted", "", ""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        allowed_bytes = attempt(rng)
    except VlmEdgeError as refusal:
        what = "refused"
        allowed_bytes = getattr(refusal, "allowed_bytes", allowed_bytes)
        if not refusal.remedy:
            fault, told = "message", f"{type(refusal).__name__}: {refusal.message!r}, fix: {refusal.remedy!r}"
    except _Hang:
        what, fault, told = "none", "hang", f"over {SECONDS:.0f} s of processor time"
    except BaseException:  # noqa: BLE001  # that is what is looked for
        what, fault, told = "none", "traceback", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    seconds, grown = time.process_time() - started, max(0, host.peak_rss_bytes() - before)
    if not fault and grown > allowed_bytes:
        fault, told = "memory", f"{grown} bytes, {allowed_bytes} were planned"
    return Verdict(number, what, fault, told[-2000:], seconds, grown)

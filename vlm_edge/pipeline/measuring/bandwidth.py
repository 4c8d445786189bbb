"""How fast this machine reads memory, and how much its caches hold: what a decoder's speed is measured against."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vlm_edge.core import host
from vlm_edge.units import KIB, MIB

BUFFER_BYTES, LEAST_BUFFER_BYTES = 256 * MIB, 32 * MIB
"""Several times the last cache of a desktop CPU; less where memory is short."""
MEMORY_SHARE = 8
ROUNDS = 7
_UNITS = {"K": KIB, "M": MIB}
_CACHES = Path("sys/devices/system/cpu/cpu0/cache")


def read_bandwidth(
    *,
    threads: int,
    rounds: int = ROUNDS,
    buffer_bytes: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Bytes a second that `threads` threads read together: the best of a few passes over a buffer no cache holds.

    Each thread takes the largest value of its part, which a CPU computes faster than memory delivers.
    """
    free = host.available_bytes()
    allowed = BUFFER_BYTES if free is None else max(LEAST_BUFFER_BYTES, min(BUFFER_BYTES, free // MEMORY_SHARE))
    size = allowed if buffer_bytes is None else buffer_bytes
    buffer = np.ones(size // 8)  # written once: pages that were never touched all stand for one page of zeros
    parts = np.array_split(buffer, threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            started = clock()
            list(pool.map(np.max, parts))
            best = max(best, buffer.nbytes / max(clock() - started, 1e-9))
    return best


def last_cache_bytes(root: Path = Path("/")) -> int | None:
    """Size of the CPU's largest cache; None where the system does not tell."""
    sizes = []
    for path in (root / _CACHES).glob("index*/size"):
        try:
            text = path.read_text().strip()
            sizes.append(int(text[:-1]) * _UNITS[text[-1:]])
        except (OSError, ValueError, KeyError):
            continue
    return max(sizes, default=None)

"""How quickly threads read memory, in bytes a second: python -m benchmarks.memory_read THREADS

Each line on standard input is one reading of a buffer far larger than any cache; the best of a few goes is the answer.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

BUFFER_BYTES = 512 << 20
GOES = 3


def fastest_read(buffers: list[np.ndarray]) -> float:
    """Bytes a second over all buffers, one thread each; the reduction is vectorized and lets the threads run side by side."""
    with ThreadPoolExecutor(len(buffers)) as pool:
        times = []
        for _ in range(GOES):
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, buffers))
            times.append(time.perf_counter() - start)
    return sum(buffer.nbytes for buffer in buffers) / min(times)


def main(threads: int) -> None:
    # Written to: pages that never were are all one page of zeros, which the caches hold.
    buffers = [np.ones(BUFFER_BYTES // 8 // threads, np.uint64) for _ in range(threads)]
    print("ready", flush=True)
    for _ in sys.stdin:
        print(fastest_read(buffers), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))

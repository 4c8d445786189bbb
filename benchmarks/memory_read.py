"""How quickly threads read memory, in bytes a second: python -m benchmarks.memory_read THREADS

Each line on standard input is one reading of a buffer far larger than any cache; the best of a few goes is the answer.
"""

from __future__ import annotations

import sys

from vlm_edge.pipeline.measuring.bandwidth import read_bandwidth
from vlm_edge.units import MIB

BUFFER_BYTES = 512 * MIB
GOES = 3


def main(threads: int) -> None:
    print("ready", flush=True)
    for _ in sys.stdin:
        print(read_bandwidth(threads=threads, rounds=GOES, buffer_bytes=BUFFER_BYTES), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))

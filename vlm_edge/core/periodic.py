"""Calling something again and again beside a block of work, in a thread that ends with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def every(interval_s: float, call: Callable[[], None], *, name: str) -> Iterator[None]:
    """For the time of the block, call `call` each `interval_s` seconds; when the block has ended, no call runs any more.

    name: of the thread.
    """
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(interval_s):
            call()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()

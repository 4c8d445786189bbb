"""What a stretch of work holds now and held at most, this process and those that it starts counted together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from vlm_edge.core import host

INTERVAL_S = 0.05
LOOKS_PER_TICK = 10


class MemoryWatch:
    """A thread that looks every INTERVAL_S while the block lasts.

    rss_bytes: resident now.  peak_bytes: resident at most; this process's own peak is the system's record, which misses nothing.
    kept_bytes: the same without pages of mapped files, which the system drops when it needs room, as far as the thread saw it.
    on_tick: called in that thread twice a second.
    """

    def __init__(self, on_tick: Callable[[], None] = lambda: None) -> None:
        self.rss_bytes = self.peak_bytes = self.kept_bytes = 0
        self._on_tick = on_tick
        self._recorded = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory watch", daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._recorded = host.reset_peak_rss()
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        if self._recorded:
            self.peak_bytes = max(self.peak_bytes, host.peak_rss_bytes())

    def _watch(self) -> None:
        looks = 0
        while not self._stop.wait(INTERVAL_S):
            self._look()
            looks += 1
            if looks % LOOKS_PER_TICK == 0:
                self._on_tick()

    def _look(self) -> None:
        children = host.children_rss_bytes()
        self.rss_bytes = host.rss_bytes() + children
        self.peak_bytes = max(self.peak_bytes, self.rss_bytes)
        self.kept_bytes = max(self.kept_bytes, host.kept_bytes() + children)

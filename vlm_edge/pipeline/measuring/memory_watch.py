"""What a stretch of work holds now and held at most, this process and those that it starts counted together."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from vlm_edge.core import host
from vlm_edge.core.periodic import every

INTERVAL_S = 0.05
LOOKS_PER_TICK = 10


class MemoryWatch:
    """A thread that looks every INTERVAL_S while the block lasts.

    peak_bytes: resident at most; this process's own peak is the system's record, which misses nothing.  held_bytes, kept_bytes: now
    and at most, without pages of mapped files, which the system drops when it needs room, as far as the thread saw it.
    on_tick: called in that thread twice a second.
    """

    def __init__(self, on_tick: Callable[[], None] = lambda: None) -> None:
        self.held_bytes = self.peak_bytes = self.kept_bytes = 0
        self._on_tick = on_tick
        self._recorded = False
        self._looks = 0
        self._looking = every(INTERVAL_S, self._look_and_tick, name="memory watch")

    def __enter__(self) -> MemoryWatch:
        self._recorded = host.reset_peak_rss()
        self._look()
        self._looking.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._looking.__exit__(None, None, None)
        self._look()
        if self._recorded:
            self.peak_bytes = max(self.peak_bytes, host.peak_rss_bytes())

    def _look_and_tick(self) -> None:
        self._look()
        self._looks += 1
        if self._looks % LOOKS_PER_TICK == 0:
            self._on_tick()

    def _look(self) -> None:
        children = host.children_rss_bytes()
        self.held_bytes = host.kept_bytes() + children
        self.kept_bytes = max(self.kept_bytes, self.held_bytes)
        self.peak_bytes = max(self.peak_bytes, host.rss_bytes() + children)

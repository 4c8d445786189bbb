"""A limit on this process's resident memory that is kept: allocations beyond it fail, and a watchdog looks at what is held."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from vlm_edge.core import host
from vlm_edge.core.periodic import every
from vlm_edge.errors import BadInput
from vlm_edge.units import format_bytes

INTERVAL_S = 0.05
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


class MemoryLimit:
    """Resident bytes that may be held, pages of mapped files not counted; None: as many as there are.

    `check` is called between steps and raises BadInput once the watchdog has seen more.  kept_bytes: the most that it has seen;
    peak_bytes: with pages of mapped files, which the system drops when it needs room.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self.limit_bytes = limit_bytes
        self.peak_bytes = self.kept_bytes = 0

    def check(self) -> None:
        """Raise BadInput if the limit was passed."""
        self._look()
        if self.limit_bytes is not None and self.kept_bytes > self.limit_bytes:
            raise self._refusal(f"{format_bytes(self.kept_bytes)} were held")

    def _look(self) -> None:
        self.peak_bytes = max(self.peak_bytes, host.rss_bytes())
        self.kept_bytes = max(self.kept_bytes, host.kept_bytes())

    def _refusal(self, what: str) -> BadInput:
        limit = "" if self.limit_bytes is None else f"; --max-memory is {format_bytes(self.limit_bytes)}"
        return BadInput(
            f"quantizing ran out of memory: {what}{limit}",
            remedy="raise --max-memory, or use fewer --samples or a smaller --seqlen; finished layers are kept",
        )

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Watch in the background, and have the system refuse data pages beyond the limit, for the time of the block."""
        try:
            with every(INTERVAL_S, self._look, name="memory watchdog"), _data_limit(self.limit_bytes):
                yield
        except (MemoryError, RuntimeError) as cause:
            if isinstance(cause, MemoryError) or any(text in str(cause).lower() for text in _OUT_OF_MEMORY):
                raise self._refusal("an allocation failed") from cause
            raise


@contextmanager
def room_for_mapped(count: int) -> Iterator[None]:
    """For the time of the block, let a file of so many bytes be mapped as private and writable, as ONNX Runtime maps weights.

    Such a mapping is data to RLIMIT_DATA, though its pages stay the file's, which the system drops, until they are written to; the
    watchdog counts those that are.
    """
    try:
        import resource
    except ImportError:  # not on Windows
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft == resource.RLIM_INFINITY:
        yield
        return
    raised = soft + count if hard == resource.RLIM_INFINITY else min(soft + count, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (raised, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextmanager
def _data_limit(limit_bytes: int | None) -> Iterator[None]:
    """RLIMIT_DATA counts writable private pages, touched or not, so it never lets resident memory grow by more than it allows."""
    try:
        import resource
    except ImportError:  # not on Windows; the watchdog remains
        yield
        return
    data = host.data_bytes()
    if limit_bytes is None or not data:
        yield
        return
    old = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = data + max(0, limit_bytes - host.rss_bytes())
    hard = old[1]
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, old)


def release(*, cycles: bool = False) -> None:
    """Give freed memory back to the system, so that the next step's peak does not stand on the last one's.

    cycles: look for objects that hold each other first, as whole models do; that takes about a second.
    """
    if cycles:
        gc.collect()
    host.release_heap()

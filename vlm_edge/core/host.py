"""What this machine offers a process: real cores, memory, and the most memory that the process has held."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vlm_edge.errors import BadInput

CPU_RESERVE_BYTES = 512 << 20
"""Left to the rest of the system when no budget is named."""
MIN_THREAD_LIMIT, THREADS_PER_PROCESSOR = 64, 4
_ROOT = Path("/")
_RESET_PEAK = "5"
"""What Linux's clear_refs takes for: forget VmHWM."""
_M_MMAP_THRESHOLD = -3
"""glibc's malloc.h."""
_CGROUPS = (
    ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Version 2, then 1: folder, limit, use, and the field of memory.stat with cached file pages that can be dropped."""


def threads() -> int:
    """Logical processors that this process may use, hyper-threads counted one by one."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return max(1, os.cpu_count() or 1)


def most_threads() -> int:
    """The most threads that one session may have: beyond a few for each processor they only cost memory and time."""
    return max(MIN_THREAD_LIMIT, THREADS_PER_PROCESSOR * threads())


def real_cores() -> int:
    """Physical cores that this process may use: affinity, hyper-threads and a container's CPU quota counted in."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:
        return max(1, os.cpu_count() or 1)
    siblings = {_first_sibling(cpu) for cpu in allowed}
    quota = _cpu_quota()
    return max(1, min(len(siblings), quota) if quota else len(siblings))


def session_threads(asked: int | None) -> int:
    """The threads of a session: as many as were asked for, else one per real core. Raises BadInput for a number out of bounds."""
    cores = real_cores()
    if asked is not None and not 1 <= asked <= most_threads():
        raise BadInput(f"--threads {asked} is not allowed", remedy=f"use 1 to {most_threads()}; {cores} is fastest")
    return cores if asked is None else asked


def _first_sibling(cpu: int) -> str:
    try:
        return (_ROOT / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _cpu_quota() -> int | None:
    """Whole cores that a cgroup (version 2, then 1) grants, or None without a limit."""
    try:
        quota, period = (_ROOT / "sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            base = _ROOT / "sys/fs/cgroup/cpu"
            quota, period = ((base / name).read_text() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
        except OSError:
            return None
    try:
        return max(1, round(int(quota) / int(period))) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):
        return None


def exact_int8_products() -> bool:
    """Whether this CPU multiplies 8-bit by 8-bit integers without loss.

    x86 without VNNI adds two products in 16 bits and cuts off what does not fit, in ONNX Runtime's MatMulInteger too: silently,
    and by as much as 15% of an encoder's output. Where the CPU does not tell what it has, the answer is no.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        text = (_ROOT / "proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(flags)


def total_bytes() -> int | None:
    """Memory that this process could have at most, a container's limit counted in; None if the system is mute."""
    known = [value for value in (_meminfo("MemTotal"), _cgroup()[0]) if value is not None]
    return min(known) if known else None


def available_bytes() -> int | None:
    """Memory that can be had now without swapping, a container's limit counted in; None if the system is mute."""
    limit, used = _cgroup()
    free = max(0, limit - used) if limit is not None else None
    known = [value for value in (_meminfo("MemAvailable"), free) if value is not None]
    return min(known) if known else None


def usable_bytes() -> int | None:
    """What a plan may take of this machine now: the available memory less CPU_RESERVE_BYTES; None if the system is mute."""
    free = available_bytes()
    return None if free is None else max(0, free - CPU_RESERVE_BYTES)


def _meminfo(field: str) -> int | None:
    return _field(_ROOT / "proc/meminfo", f"{field}:", unit=1 << 10)


def _cgroup() -> tuple[int | None, int]:
    """A container's memory limit, or None without one, and what it uses, file pages that can be dropped not counted."""
    for folder, limit, used, droppable in _CGROUPS:
        base = _ROOT / folder
        try:
            most, now = int((base / limit).read_text()), int((base / used).read_text())
        except (OSError, ValueError):
            continue
        return most, max(0, now - (_field(base / "memory.stat", droppable) or 0))
    return None, 0


def peak_rss_bytes() -> int:
    """The most resident memory that this process has held, or 0 where the system does not tell."""
    # Linux's ru_maxrss begins with the peak of the process that started this one; VmHWM does not.
    own = _field(_ROOT / "proc/self/status", "VmHWM:", unit=1 << 10)
    if own is not None:
        return own
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def reset_peak_rss() -> bool:
    """Let `peak_rss_bytes` begin again from what is resident now; False where the system cannot."""
    try:
        (_ROOT / "proc/self/clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def children_rss_bytes() -> int:
    """Resident memory of the processes that this one has started and that run now, and of theirs; 0 where none is told of.

    One that is only just being started still is this process in another's name, down to its peak, and holds nothing of its own.
    """
    own, seen = _signature("self"), set[str]()
    total, left = 0, ["self"]
    while left:
        for listed in (_ROOT / "proc" / left.pop() / "task").glob("*/children"):
            try:
                found = set(listed.read_text().split()) - seen
            except OSError:  # it has ended meanwhile
                continue
            seen |= found
            left += found
            started = (child for child in found if _signature(child) != own)
            total += sum(_field(_ROOT / "proc" / child / "status", "VmRSS:", unit=1 << 10) or 0 for child in started)
    return total


def _signature(process: str) -> tuple[int | None, ...]:
    """What tells one address space from another, short of looking into it."""
    status = _ROOT / "proc" / process / "status"
    return tuple(_field(status, name) for name in ("VmPeak:", "VmHWM:", "VmData:"))


def rss_bytes() -> int:
    """Resident memory of this process now, or 0 where the system does not tell."""
    return _field(_ROOT / "proc/self/status", "VmRSS:", unit=1 << 10) or 0


def kept_bytes() -> int:
    """Resident memory of this process without the pages of mapped files, which the system drops when it needs room."""
    parts = [_field(_ROOT / "proc/self/status", name, unit=1 << 10) for name in ("RssAnon:", "RssShmem:")]
    return rss_bytes() if None in parts else sum(part or 0 for part in parts)


def data_bytes() -> int:
    """Private writable memory of this process, as RLIMIT_DATA counts it, or 0 where the system does not tell."""
    return _field(_ROOT / "proc/self/status", "VmData:", unit=1 << 10) or 0


def release_heap() -> None:
    """Give memory that was freed back to the system, so that what comes next does not stand on the last step's peak.

    Without it, glibc keeps what blocks of up to 32 MiB left behind. Takes milliseconds; does nothing with other C libraries.
    """
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """For the time of the block, allocations of a MiB or more stand apart and go back to the system as soon as they are freed.

    glibc raises its own limit, from 128 KiB to 32 MiB, as large blocks are freed; blocks below it then leave holes between what
    stays, which little fits into. Each such allocation costs a call of the system. Afterwards the limit is 32 MiB. With other C
    libraries nothing changes.
    """
    import ctypes

    def limit(count: int) -> None:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, count)

    limit(1 << 20)
    try:
        yield
    finally:
        limit(32 << 20)


def _field(path: Path, name: str, *, unit: int = 1) -> int | None:
    """The number behind a name at the start of a line."""
    try:
        words = [line.split() for line in path.read_text().splitlines()]
        return next((int(found[1]) * unit for found in words if found[:1] == [name]), None)
    except (OSError, ValueError, IndexError):
        return None

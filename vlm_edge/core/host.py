"""What this machine offers a process: real cores, memory, and the most memory that the process has held."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CPU_RESERVE_BYTES = 512 << 20
"""Left to the rest of the system when no budget is named."""


def real_cores() -> int:
    """Physical cores that this process may use: affinity, hyper-threads and a container's CPU quota counted in."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:
        return max(1, os.cpu_count() or 1)
    siblings = {_first_sibling(cpu) for cpu in allowed}
    quota = _cpu_quota()
    return max(1, min(len(siblings), quota) if quota else len(siblings))


def _first_sibling(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _cpu_quota() -> int | None:
    """Whole cores that a cgroup (version 2, then 1) grants, or None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            base = Path("/sys/fs/cgroup/cpu")
            quota, period = ((base / name).read_text() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
        except OSError:
            return None
    try:
        return max(1, round(int(quota) / int(period))) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):
        return None


def available_bytes() -> int | None:
    """Memory that can be had now without swapping, a cgroup's limit counted in; None where the system does not tell."""
    known = [value for value in (_meminfo("MemAvailable"), _cgroup_free()) if value is not None]
    return min(known) if known else None


def _meminfo(field: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:")), None)


def _cgroup_free() -> int | None:
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        return limit - int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return None


def peak_rss_bytes() -> int:
    """The most resident memory that this process has held, or 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10

"""What a process may use: read from a made-up /proc and /sys, and once from this machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vlm_edge.core import host
from vlm_edge.errors import BadInput

Files = dict[str, str]
MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\nSwapTotal:  1 kB\n"
GIB = 1 << 30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Files], None]:
    """Puts files under the root that host.py reads."""
    monkeypatch.setattr(host, "_ROOT", tmp_path)

    def make(files: Files) -> None:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)

    return make


def siblings(pairs: dict[int, str]) -> Files:
    return {f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": text for cpu, text in pairs.items()}


def test_free_memory_is_what_the_kernel_calls_available(machine: Callable[[Files], None]) -> None:
    machine({"proc/meminfo": MEMINFO})
    assert host.available_bytes() == 8_192_000_000
    assert host.total_bytes() == 16_384_000_000


def test_a_plan_leaves_the_reserve_alone(machine: Callable[[Files], None]) -> None:
    machine({"proc/meminfo": MEMINFO})
    assert host.usable_bytes() == 8_192_000_000 - (512 << 20)
    machine({"proc/meminfo": "MemAvailable: 1000 kB"})
    assert host.usable_bytes() == 0


def test_a_system_that_tells_nothing(machine: Callable[[Files], None]) -> None:
    machine({})
    assert host.usable_bytes() is None
    assert host.available_bytes() is None
    assert host.total_bytes() is None
    machine({"proc/meminfo": "MemAvailable: lots\nMemTotal:"})
    assert host.available_bytes() is None
    assert host.total_bytes() is None


V2 = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory.stat", "inactive_file")
V1 = (
    "sys/fs/cgroup/memory/memory.limit_in_bytes",
    "sys/fs/cgroup/memory/memory.usage_in_bytes",
    "sys/fs/cgroup/memory/memory.stat",
    "total_inactive_file",
)


@pytest.mark.parametrize("version", [V1, V2], ids=["cgroup 1", "cgroup 2"])
def test_a_containers_limit_counts_without_the_file_pages_that_it_can_drop(
    machine: Callable[[Files], None], version: tuple[str, str, str, str]
) -> None:
    limit, used, stat, field = version
    machine({"proc/meminfo": MEMINFO, limit: f"{4 * GIB}\n", used: f"{3 * GIB}\n"})
    assert host.available_bytes() == 1 * GIB
    machine({stat: f"anon 5\n{field} {2 * GIB}\nfile 7\n"})
    assert host.available_bytes() == 3 * GIB
    assert host.total_bytes() == 4 * GIB
    machine({used: f"{7 * GIB}\n"})
    assert host.available_bytes() == 0


@pytest.mark.parametrize("limit", ["max\n", "", "9223372036854771712\n"])
def test_a_container_without_a_limit_has_the_machine(machine: Callable[[Files], None], limit: str) -> None:
    machine({"proc/meminfo": MEMINFO, V2[0]: limit, V2[1]: "5"})
    assert host.available_bytes() == 8_192_000_000
    assert host.total_bytes() == 16_384_000_000


@pytest.mark.parametrize(
    ("allowed", "threads_of", "cores"),
    [
        ({0, 1, 2, 3}, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, 2),
        ({0, 1, 2, 3}, {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, 2),
        ({0, 1}, {0: "0", 1: "1"}, 2),
        ({2}, {0: "0,2", 2: "0,2"}, 1),
        ({0, 1, 2}, {}, 3),
    ],
)
def test_hyper_threads_are_no_cores(
    machine: Callable[[Files], None],
    monkeypatch: pytest.MonkeyPatch,
    allowed: set[int],
    threads_of: dict[int, str],
    cores: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed)
    machine(siblings(threads_of))
    assert host.real_cores() == cores
    assert host.threads() == len(allowed)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"sys/fs/cgroup/cpu.max": "9900000 100000\n"}, 8),
        ({"sys/fs/cgroup/cpu.max": "200000 0\n"}, 8),
        ({"sys/fs/cgroup/cpu.max": "nonsense\n"}, 8),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_a_containers_quota_of_processor_time_counts(
    machine: Callable[[Files], None], monkeypatch: pytest.MonkeyPatch, files: Files, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    machine(files)
    assert host.real_cores() == cores


def test_a_system_without_affinity_counts_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert host.real_cores() == host.threads() == 1


def test_a_session_has_a_thread_for_each_core_unless_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "real_cores", lambda: 8)
    assert (host.session_threads(None), host.session_threads(1)) == (8, 1)
    for asked in (0, -1, host.most_threads() + 1):
        with pytest.raises(BadInput, match=f"--threads {asked} is not allowed"):
            host.session_threads(asked)


def test_this_machine_gives_plausible_numbers() -> None:
    assert 1 <= host.real_cores() <= host.threads()
    assert host.peak_rss_bytes() > 10 << 20
    if sys.platform == "linux":
        available, total = host.available_bytes(), host.total_bytes()
        assert available is not None
        assert total is not None
        assert 0 < available < total


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is inherited on Linux only")
def test_the_peak_is_this_process_own_and_not_its_parents() -> None:
    ballast = bytearray(200 << 20)
    ballast[:: 1 << 12] = b"x" * len(ballast[:: 1 << 12])
    assert host.peak_rss_bytes() > 200 << 20
    program = "from vlm_edge.core.host import peak_rss_bytes; print(peak_rss_bytes())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert int(done.stdout) < 100 << 20


def test_without_proc_the_peak_comes_from_getrusage(machine: Callable[[Files], None]) -> None:
    machine({})
    assert host.peak_rss_bytes() > 10 << 20


@pytest.mark.parametrize(
    ("machine_name", "flags", "exact"),
    [
        ("x86_64", "fpu avx2 avx512_vnni", True),
        ("AMD64", "fpu avx2 avx_vnni", True),
        ("x86_64", "fpu avx2 avx512f", False),
        ("x86_64", None, False),
        ("aarch64", None, True),
    ],
)
def test_which_cpus_multiply_bytes_without_loss(
    machine: Callable[[Files], None], monkeypatch: pytest.MonkeyPatch, machine_name: str, flags: str | None, exact: bool
):
    if flags is not None:
        machine({"proc/cpuinfo": f"processor\t: 0\nflags\t\t: {flags}\nbugs\t: none\n"})
    monkeypatch.setattr(host.platform, "machine", lambda: machine_name)
    assert host.exact_int8_products() is exact


def test_what_this_process_holds_now_grows_and_shrinks() -> None:
    before = host.rss_bytes()
    block = bytearray(os.urandom(1 << 20) * 64)
    assert host.rss_bytes() >= before + (60 << 20)
    assert host.data_bytes() >= 60 << 20
    del block
    assert host.rss_bytes() < before + (60 << 20)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
def test_the_peak_can_begin_again() -> None:
    block = bytearray(os.urandom(1 << 20) * 100)
    assert host.peak_rss_bytes() > 100 << 20
    held = host.rss_bytes()
    del block
    assert host.reset_peak_rss()
    assert host.peak_rss_bytes() < held - (80 << 20)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists the children of a thread")
def test_children_and_theirs_are_counted_while_they_run() -> None:
    program = "import subprocess, sys; block = b'x' * (40 << 20); {then}; print('ready', flush=True); sys.stdin.read()"
    inner = program.format(then="0").replace("'", '"')
    outer = program.format(
        then=f"child = subprocess.Popen([sys.executable, '-c', {inner!r}], stdout=subprocess.PIPE); child.stdout.readline()"
    )
    before = host.children_rss_bytes()
    with subprocess.Popen([sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert host.children_rss_bytes() > before + (80 << 20)
        child.communicate()
    assert host.children_rss_bytes() < before + (40 << 20)


def test_a_child_that_is_only_being_started_holds_nothing_of_its_own(machine: Callable[[Files], None]) -> None:
    """Between vfork and exec it has this process's memory, which is not there twice."""

    def status(peak: int, held: int) -> str:
        return f"VmPeak:\t{peak} kB\nVmHWM:\t{held} kB\nVmRSS:\t{held} kB\nVmData:\t9 kB\n"

    files = {"proc/self/task/1/children": "7 8", "proc/self/status": status(500, 100)}
    machine(files | {"proc/7/status": status(500, 100), "proc/8/status": status(300, 40)})
    assert host.children_rss_bytes() == 40 << 10


def test_a_system_that_does_not_tell_what_is_held(machine: Callable[[Files], None]) -> None:
    machine({})
    assert host.rss_bytes() == host.data_bytes() == host.children_rss_bytes() == 0
    assert not host.reset_peak_rss()


HOLES = """
import sys
from contextlib import nullcontext
import numpy as np
from vlm_edge.core import host

np.ones(30 << 20, np.uint8)  # freed at once: glibc then keeps blocks of up to so much in its heap
before = host.rss_bytes()
with host.large_blocks_apart() if sys.argv[1] == "apart" else nullcontext():
    kept, freed = [], []
    for _ in range(40):
        freed.append(np.ones(4 << 20, np.uint8))
        kept.append(np.ones(64 << 10, np.uint8))
    freed.clear()
print(host.rss_bytes() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_blocks_that_stand_apart_leave_no_holes() -> None:
    # As it is, freed blocks stay between those that are kept; the last of them is at the heap's end.
    held = {
        way: int(subprocess.run([sys.executable, "-c", HOLES, way], capture_output=True, text=True, check=True).stdout)
        for way in ("apart", "as it is")
    }
    assert held["as it is"] > 100 << 20
    assert held["apart"] < 20 << 20

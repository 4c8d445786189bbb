"""A memory limit that is kept, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlm_edge.core import host
from vlm_edge.errors import BadInput
from vlm_edge.quant import memory_limit
from vlm_edge.quant.memory_limit import MemoryLimit

ROOT = Path(__file__).parents[2]
GROW = """
import torch
from vlm_edge.core import host
from vlm_edge.errors import BadInput
from vlm_edge.quant.memory_limit import MemoryLimit
limit = MemoryLimit(host.rss_bytes() + (200 << 20))
kept = []
try:
    with limit.enforced():
        for _ in range(100):
            kept.append(torch.ones(5 << 20))  # 20 MiB
except BadInput as refused:
    print(len(kept), host.peak_rss_bytes() <= limit.limit_bytes + (8 << 20), refused.message)
torch.ones(100 << 20)  # afterwards there is no limit any more
"""


def test_allocations_beyond_the_limit_are_refused() -> None:
    done = subprocess.run([sys.executable, "-c", GROW], cwd=ROOT, capture_output=True, text=True, check=True)
    count, within, message = done.stdout.split(maxsplit=2)
    assert 5 <= int(count) <= 10
    assert within == "True"
    assert message.startswith("quantizing ran out of memory: an allocation failed; --max-memory is")


def test_the_watchdog_s_finding_is_raised_between_steps() -> None:
    limit = MemoryLimit(1 << 20)
    with pytest.raises(BadInput, match=r"were held; --max-memory is 1\.0 MiB"):
        limit.check()


def test_without_a_limit_the_peak_is_recorded() -> None:
    limit = MemoryLimit(None)
    with limit.enforced():
        limit.check()
    assert limit.peak_bytes >= host.rss_bytes() // 2


def test_a_limit_watches_again_when_it_is_enforced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_limit, "INTERVAL_S", 0.005)
    limit = MemoryLimit(None)
    for _ in range(2):
        limit.kept_bytes = 0
        with limit.enforced():
            deadline = time.monotonic() + 60
            while not limit.kept_bytes and time.monotonic() < deadline:
                time.sleep(0.005)
        assert limit.kept_bytes


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="something else"), MemoryLimit(None).enforced():
        raise RuntimeError("something else")

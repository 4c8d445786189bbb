"""The watch sees what is held between two of its looks, and what children hold."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from vlm_edge.core import host
from vlm_edge.pipeline.measuring import memory_watch
from vlm_edge.pipeline.measuring.memory_watch import MemoryWatch

MIB = 1 << 20
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="other systems tell nothing of a moment that has passed"
)


def test_a_short_peak_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_watch, "INTERVAL_S", 3600)
    before = host.rss_bytes()
    with MemoryWatch() as watch:
        block = bytearray(os.urandom(MIB) * 100)
        del block
    assert watch.peak_bytes > before + 90 * MIB
    assert watch.held_bytes < before + 50 * MIB


def test_an_earlier_peak_does_not_count() -> None:
    block = bytearray(os.urandom(MIB) * 100)
    held = host.rss_bytes()
    del block
    with MemoryWatch() as watch:
        pass
    assert watch.peak_bytes < held - 50 * MIB
    assert 0 < watch.kept_bytes <= watch.peak_bytes


def test_a_child_counts_and_somebody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_watch, "INTERVAL_S", 0.005)
    ticked = threading.Event()
    before = host.rss_bytes()
    with MemoryWatch(ticked.set) as watch:
        program = "block = b'x' * (80 << 20); print(flush=True); input()"
        with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            ticked.clear()
            assert ticked.wait(60)
            child.communicate(b"\n")
    assert watch.peak_bytes > before + 80 * MIB

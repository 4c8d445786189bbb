"""Calls beside a block: they come while it lasts, and none comes after it, however it ends."""

from __future__ import annotations

import threading

import pytest

from vlm_edge.core.periodic import every


def test_calls_come_while_the_block_lasts_and_end_with_it() -> None:
    called = threading.Semaphore(0)
    with every(0.001, called.release, name="counting"):
        for _ in range(3):
            assert called.acquire(timeout=60)
        assert "counting" in {thread.name for thread in threading.enumerate()}
    assert "counting" not in {thread.name for thread in threading.enumerate()}


def test_a_block_that_fails_ends_the_calls_too() -> None:
    with pytest.raises(ValueError, match="in the block"), every(3600, lambda: None, name="waiting"):
        raise ValueError("in the block")
    assert "waiting" not in {thread.name for thread in threading.enumerate()}

"""Advice: every line planned again, in the order that is promised."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.memory.subjects import LLAVA, QWEN
from vlm_edge.memory.advise import advise
from vlm_edge.memory.plan import plan_request
from vlm_edge.memory.request import Request
from vlm_edge.units import GIB, MIB

TIGHT = Request(runtime_bytes=512 * MIB, tiles=4, context=4096, batch=2)


def test_what_fits_needs_no_advice() -> None:
    assert advise(LLAVA, TIGHT, budget_bytes=40 * GIB) == ()


@pytest.mark.parametrize("budget", [4 * GIB, 6 * GIB, 8 * GIB])
def test_each_change_lowers_the_peak_and_those_that_are_enough_come_first(budget: int) -> None:
    asked = plan_request(LLAVA, TIGHT, budget_bytes=budget)
    assert not asked.fits
    found = advise(LLAVA, TIGHT, budget_bytes=budget)
    assert found
    assert all(line.peak_bytes < asked.peak_bytes for line in found)
    assert all(line.fits == (line.peak_bytes <= budget) for line in found)
    assert [line.fits for line in found] == sorted((line.fits for line in found), reverse=True)
    assert len({line.change for line in found}) == len(found)


def test_peaks_are_those_of_the_change() -> None:
    found = {line.change: line.peak_bytes for line in advise(LLAVA, TIGHT, budget_bytes=8 * GIB)}
    int8 = plan_request(LLAVA, replace(TIGHT, kv_cache="int8"), budget_bytes=0).peak_bytes
    assert found["--kv-cache-dtype int8"] == int8
    released = plan_request(LLAVA, replace(TIGHT, release_tower=True), budget_bytes=0).peak_bytes
    assert found["load and release the tower before the decoder"] == released
    assert "--batch-size 1" in found


def test_changes_are_joined_where_none_alone_is_enough() -> None:
    budget = 5 * GIB
    found = advise(LLAVA, TIGHT, budget_bytes=budget)
    assert " and " in found[0].change
    assert found[0].fits
    assert not any(line.fits for line in found[1:])


def test_a_smaller_image_is_advised_where_its_size_counts() -> None:
    request = replace(TIGHT, tiles=None, image_px=(3000, 2000), batch=1, context=8192)
    found = advise(QWEN, request, budget_bytes=10 * GIB)
    sized = next(line for line in found if line.change.startswith("--image-size"))
    assert sized.fits
    assert any("fused" in line.change for line in found)


def test_on_a_cpu_the_tower_may_have_eight_bits() -> None:
    request = replace(TIGHT, target="cpu", unified=True, vision_dtype="fp32", kv_cache="fp32")
    changes = [line.change for line in advise(LLAVA, request, budget_bytes=6 * GIB)]
    assert "--vision-dtype int8" in changes
    assert not any("fused" in change for change in changes)


def test_hopeless_cases_say_so() -> None:
    assert all(not line.fits for line in advise(LLAVA, TIGHT, budget_bytes=100 * MIB))

"""The inverse: the answer fits and the next step does not, found out by planning again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.memory.subjects import LLAVA, QWEN
from vlm_edge.errors import BadInput, DoesNotFit
from vlm_edge.memory.plan import plan_request
from vlm_edge.memory.request import Request, Subject
from vlm_edge.memory.solve import PIXEL_STEP_PX, solve
from vlm_edge.units import GIB, MIB

GPU = Request(runtime_bytes=512 * MIB, tiles=0, context=8192)


def peak(subject: Subject, request: Request) -> int | None:
    try:
        return plan_request(subject, request, budget_bytes=0).peak_bytes
    except BadInput:
        return None


@settings(max_examples=40, deadline=None)
@given(
    st.integers(5 * GIB, 40 * GIB), st.sampled_from(["tiles", "context", "batch"]), st.sampled_from(["fp16", "int8"])
)
def test_the_answer_fits_and_the_next_step_does_not(budget: int, unknown: str, kv: str) -> None:
    request = replace(GPU, kv_cache=kv)
    field = {"tiles": "tiles", "context": "context", "batch": "batch"}[unknown]
    try:
        found = solve(LLAVA, request, unknown, budget_bytes=budget)
    except DoesNotFit:
        least = {"tiles": 0, "context": 577, "batch": 1}[unknown]
        needed = peak(LLAVA, replace(request, **{field: least}))
        assert needed is not None
        assert needed > budget
        return
    held = peak(LLAVA, replace(request, **{field: found.answer}))
    assert held == found.peak_bytes
    assert held is not None
    assert held <= budget
    following = peak(LLAVA, replace(request, **{field: found.answer + 1}))
    if found.limited_by == "memory":
        assert following == found.next_peak_bytes
        assert following is not None
        assert following > budget
    else:
        assert following is None or found.answer in (1 << 12, 1 << 16, 1 << 20)


@settings(max_examples=15, deadline=None)
@given(st.integers(6 * GIB, 30 * GIB), st.sampled_from([(1, 1), (1920, 1080), (300, 900)]), st.booleans())
def test_every_smaller_image_fits_too(budget: int, shape: tuple[int, int], fused: bool) -> None:
    request = replace(GPU, tiles=None, image_px=shape, fused_vision=fused, context=20_000)
    try:
        found = solve(QWEN, request, "pixels", budget_bytes=budget)
    except DoesNotFit:
        assume(False)
    assert max(found.request.image_px) == found.answer
    width, height = found.request.image_px
    assert width / height == pytest.approx(shape[0] / shape[1], rel=0.2)
    steps = found.answer // PIXEL_STEP_PX

    def of_edge(n: int) -> int | None:
        scale = n * PIXEL_STEP_PX / max(shape)
        size = (max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale)))
        return peak(QWEN, replace(request, image_px=size))

    for smaller in {1, steps // 3 or 1, steps // 2 or 1, steps}:
        held = of_edge(smaller)
        assert held is not None
        assert held <= budget
    if found.limited_by == "memory":
        following = of_edge(steps + 1)
        assert following is not None
        assert following > budget


def test_what_ends_it() -> None:
    assert solve(LLAVA, GPU, "tiles", budget_bytes=100 * GIB).limited_by == "context"
    assert solve(LLAVA, replace(GPU, images=0), "context", budget_bytes=1 << 60).limited_by == "model"
    assert solve(LLAVA, GPU, "batch", budget_bytes=12 * GIB).limited_by == "memory"


def test_questions_without_an_answer() -> None:
    with pytest.raises(BadInput, match="--solve"):
        solve(LLAVA, GPU, "colours", budget_bytes=GIB)
    with pytest.raises(BadInput, match="needs images"):
        solve(Subject("text", LLAVA.text), GPU, "tiles", budget_bytes=GIB)
    crossing = replace(LLAVA, text=replace(LLAVA.text, cross_attention_layers=(1,)))
    with pytest.raises(BadInput, match="same tiles"):
        solve(crossing, GPU, "tiles", budget_bytes=GIB)
    with pytest.raises(BadInput, match="their own size"):
        solve(QWEN, GPU, "tiles", budget_bytes=GIB)
    with pytest.raises(DoesNotFit, match="batch 1 already needs"):
        solve(LLAVA, GPU, "batch", budget_bytes=GIB)
    with pytest.raises(BadInput, match="leave no room"):
        solve(LLAVA, replace(GPU, context=100), "batch", budget_bytes=100 * GIB)

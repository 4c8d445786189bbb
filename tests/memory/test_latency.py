"""The forecast against arithmetic by hand, and against times that were measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.memory.subjects import CLIP_L_336, LLAVA, VICUNA_7B, text
from vlm_edge.core.device import DeviceProfile, Figure, Share, load_profile
from vlm_edge.core.geometry import TokenGeometry
from vlm_edge.core.specs import ProjectorSpec
from vlm_edge.memory.latency import encode_flops, forecast, prefill_flops
from vlm_edge.memory.plan import plan_request
from vlm_edge.memory.request import Request, Subject, visual_of

DEVICE = DeviceProfile(
    name="toy", title="a toy", target="cuda", unified_memory=False, total_bytes=Figure(1 << 34, "made up"),
    usable_bytes=Figure(1 << 34, "made up"), bandwidth=Figure(10**12, "made up"),
    flops={"fp16": Figure(10**14, "made up")}, bandwidth_share=Share(0.5, "made up"), compute_share=Share(0.25, "made up"),
)  # fmt: skip


def test_a_decoder_counts_each_weight_twice_for_each_token() -> None:
    spec = text(64, 128, 2, 4, 4, 100)
    weights = 2 * (4 * 64 * 64 + 3 * 64 * 128)
    assert prefill_flops(spec, 10) == 2 * weights * 10 + 2 * 100 * 4 * 16 * 2 + 2 * 64 * 100


def test_a_tower_by_hand() -> None:
    tokens, width = 577, 1024
    layer = 2 * tokens * (4 * width**2 + 2 * width * 4096) + 4 * tokens * tokens * width
    visual = visual_of(LLAVA, Request(tiles=2))
    assert encode_flops(LLAVA, visual) == 3 * 23 * layer + 2 * 20_979_712 * 3 * 576


def test_each_stage_takes_the_longer_of_its_two_limits() -> None:
    request = Request(tiles=0, context=4096)
    plan = plan_request(LLAVA, request, budget_bytes=1 << 34)
    times = forecast(LLAVA, request, plan, DEVICE)
    held = {item.name: item.bytes for item in plan.items}
    prompt = 576 + 128
    read = held["llm.weights"] + held["llm.lm_head"] + held["kv_cache"] * prompt // 4096
    assert times.ms_per_token == pytest.approx(1000 * read / 0.5e12)
    assert times.prefill_ms == pytest.approx(1000 * prefill_flops(VICUNA_7B, prompt) / 0.25e14)
    assert times.ttft_ms == pytest.approx(times.encode_ms + times.prefill_ms + times.ms_per_token)
    faster = replace(DEVICE, encode_share=Share(0.5, "made up"))
    assert forecast(LLAVA, request, plan, faster).encode_ms == pytest.approx(times.encode_ms / 2)


def test_on_a_cpu_the_forecast_is_near_what_was_measured() -> None:
    # two cores: CLIP-L/336 2.15 s an image; a 1.1B Llama in int4 172 tokens/s in prefill, 45 tokens/s at 640 tokens of context
    device = load_profile("cpu-generic")
    shape = text(2048, 5632, 22, 32, 4, 32000)
    subject = Subject("1.1B", shape, CLIP_L_336, ProjectorSpec(1024, 2048, 2048, parameters=6_295_552),
                      TokenGeometry(view_px=336, grid=(24, 24)))  # fmt: skip
    request = Request(
        target="cpu", unified=True, tiles=0, context=1024, lm_head="int4", kv_cache="fp32", vision_dtype="fp32"
    )
    times = forecast(subject, request, plan_request(subject, request, budget_bytes=1 << 40), device)
    assert times.encode_ms == pytest.approx(2150, rel=0.15)
    assert times.prompt_tokens / times.prefill_ms * 1000 == pytest.approx(172, rel=0.15)
    assert 1000 / times.ms_per_token == pytest.approx(45, rel=0.15)


def test_a_text_model_encodes_nothing() -> None:
    subject, request = Subject("text", VICUNA_7B), Request(images=0)
    times = forecast(subject, request, plan_request(subject, request, budget_bytes=1), DEVICE)
    assert times.encode_ms == 0

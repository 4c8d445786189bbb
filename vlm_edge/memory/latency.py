"""A roofline forecast: each stage takes as long as its arithmetic or its memory traffic, whichever is longer.

Peaks come from the device's profile, and so do the shares of them that are reached in practice, with their sources.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlm_edge.core.device import DeviceProfile
from vlm_edge.core.specs import TextSpec, VisionSpec
from vlm_edge.memory.phases import Plan
from vlm_edge.memory.request import Request, Subject, Visual, visual_of
from vlm_edge.memory.vision import attention_tokens
from vlm_edge.memory.weights import layer_matrices

TEXT_TOKENS = 128
"""Words of the question and the chat template in the prompt whose prefill is forecast."""
COMPUTE_DTYPES = {"cpu": ("fp32", "fp16"), "cuda": ("fp16", "fp32")}
PACKED_DTYPES = {"cpu": ("int8", "fp32"), "cuda": ("fp16", "fp32")}
"""What tower and decoder compute in, first choice first: MatMulNBits on a CPU multiplies int8 by int8, on a GPU fp16."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds. ttft_ms: encode, prefill and one token; reading and cutting the image are not in it."""

    encode_ms: float
    prefill_ms: float
    ttft_ms: float
    ms_per_token: float
    prompt_tokens: int


def forecast(subject: Subject, request: Request, plan: Plan, device: DeviceProfile) -> Latency:
    """Times of one sequence on an idle device."""
    visual = visual_of(subject, request)
    held = {item.name: item.bytes for item in plan.items}
    reads = sum(held.get(name, 0) for name in ("llm.weights", "llm.lm_head"))
    tied = subject.text.tied_embeddings and not held.get("llm.lm_head")
    reads += held.get("llm.embedding", 0) * (tied and "llm.embedding" not in subject.stored)
    prompt = min(request.context, visual.prompt + TEXT_TOKENS)
    cache = held.get("kv_cache", 0) * prompt // request.context + held.get("kv_cache.cross", 0)
    plain = COMPUTE_DTYPES[device.target]
    packed = PACKED_DTYPES[device.target] if request.weights in ("awq", "int8") else plain
    tower = held.get("vision.weights", 0) + held.get("projector.weights", 0)
    share = (device.encode_share or device.compute_share).value
    encode = _ms(device, encode_flops(subject, visual), tower, plain, share) if visual.views else 0.0
    prefill = _ms(
        device, request.batch * prefill_flops(subject.text, prompt), reads, packed, device.compute_share.value
    )
    token = _ms(
        device, request.batch * prefill_flops(subject.text, 1), reads + cache, packed, device.compute_share.value
    )
    return Latency(encode, prefill, encode + prefill + token, token, prompt)


def encode_flops(subject: Subject, visual: Visual) -> int:
    """Multiply-adds count as two. Matrices of every layer, attention (4 T * T * D; within windows 4 T * W * D), projector."""
    vision, projector = subject.vision, subject.projector
    if vision is None or projector is None or not visual.views:
        return 0
    tokens = attention_tokens(vision, patches=visual.patches)
    sequences = -(-visual.views // vision.joint_views)
    rows = -(-visual.views * visual.patches // projector.merge**2)
    return sequences * _tower_flops(vision, tokens) + 2 * projector.parameters * rows


def _tower_flops(vision: VisionSpec, tokens: int) -> int:
    full = len(vision.full_attention_layers) if vision.window_px else vision.layers
    window = min(tokens, (vision.window_px // vision.patch_px) ** 2)
    attention = full * tokens + (vision.layers - full) * window
    return 2 * vision.layers * layer_matrices(vision) * tokens + 4 * tokens * attention * vision.width


def prefill_flops(text: TextSpec, tokens: int) -> int:
    """All linear layers for each position, causal attention (half of 4 L * L * heads * head_dim), logits of the last one."""
    attention = 2 * tokens * tokens * text.heads * text.head_dim * text.layers
    return 2 * text.linear_parameters * tokens + attention + 2 * text.hidden * text.vocab


def _ms(device: DeviceProfile, flops: int, read_bytes: int, dtypes: tuple[str, ...], share: float) -> float:
    peak = next(device.flops[dtype].value for dtype in (*dtypes, *device.flops) if dtype in device.flops)
    compute = flops / (peak * share)
    traffic = read_bytes / (device.bandwidth.value * device.bandwidth_share.value)
    return 1000 * max(compute, traffic)

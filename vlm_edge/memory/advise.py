"""What would help when a plan does not fit: each change with its new peak, those that are enough first, the mildest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from vlm_edge.core.geometry import PatchGeometry
from vlm_edge.errors import VlmEdgeError
from vlm_edge.memory.plan import plan_request
from vlm_edge.memory.request import Request, Subject, visual_of
from vlm_edge.memory.solve import solve

KEEP_RATIOS = (0.5, 0.25)
_Change = tuple[str, Request]


@dataclass(frozen=True)
class Advice:
    """change: the options that make it, or what else to do.  peak_bytes: with it.  fits: whether that is enough."""

    change: str
    peak_bytes: int
    fits: bool


def advise(subject: Subject, request: Request, *, budget_bytes: int) -> tuple[Advice, ...]:
    """Changes that lower the peak, none where the plan fits. One of them joins the mildest ones until they are enough.

    Raises BadInput as plan_request does.
    """
    plan = plan_request(subject, request, budget_bytes=budget_bytes)
    if plan.fits:
        return ()
    found: list[Advice] = []
    for change in _CHANGES:
        for text, changed in change(subject, request, budget_bytes):
            peak = _peak(subject, changed, budget_bytes)
            if peak is not None and peak < plan.peak_bytes:
                found.append(Advice(text, peak, peak <= budget_bytes))
    text, joined = _joined(subject, request, budget_bytes)
    peak = _peak(subject, joined, budget_bytes)
    if text and peak is not None and text not in {advice.change for advice in found}:
        found.append(Advice(text, peak, peak <= budget_bytes))
    return tuple(sorted(found, key=lambda advice: not advice.fits))


def _joined(subject: Subject, request: Request, budget_bytes: int) -> _Change:
    """One change after the other, the mildest first, until it fits; each only where it lowers the peak."""
    texts: list[str] = []
    for change in _CHANGES:
        for text, changed in change(subject, request, budget_bytes):
            now, then = (_peak(subject, each, budget_bytes) for each in (request, changed))
            if now is None or now <= budget_bytes:
                return " and ".join(texts), request
            if then is not None and then < now:
                texts = [each for each in texts if each.split(maxsplit=1)[0] != text.split(maxsplit=1)[0]]
                texts.append(text)
                request = changed
    return " and ".join(texts), request


def _peak(subject: Subject, request: Request, budget_bytes: int) -> int | None:
    try:
        return plan_request(subject, request, budget_bytes=budget_bytes).peak_bytes
    except VlmEdgeError:
        return None


def _weights(subject: Subject, request: Request, budget_bytes: int) -> Iterator[_Change]:  # noqa: ARG001
    if request.weights != "awq" and "llm.weights" not in subject.stored:
        yield "--weights awq", replace(request, weights="awq")


def _cache(subject: Subject, request: Request, budget_bytes: int) -> Iterator[_Change]:  # noqa: ARG001
    if request.kv_cache in ("fp32", "fp16"):
        yield "--kv-cache-dtype int8", replace(request, kv_cache="int8")


def _release(subject: Subject, request: Request, budget_bytes: int) -> Iterator[_Change]:  # noqa: ARG001
    if subject.vision is not None and not request.release_tower:
        yield "load and release the tower before the decoder", replace(request, release_tower=True)


def _tower(subject: Subject, request: Request, budget_bytes: int) -> Iterator[_Change]:  # noqa: ARG001
    if subject.vision is None or "vision.weights" in subject.stored:
        return
    if request.vision_dtype == "fp32" and request.target == "cuda":
        yield "--vision-dtype fp16", replace(request, vision_dtype="fp16")
    if request.vision_dtype != "int8" and request.target == "cpu":
        yield "--vision-dtype int8", replace(request, vision_dtype="int8")


def _fused(subject: Subject, request: Request, budget_bytes: int) -> Iterator[_Change]:  # noqa: ARG001
    if subject.vision is not None and request.images and not request.fused_vision and request.target == "cuda":
        yield "--vision-attention fused, in a runtime that has it", replace(request, fused_vision=True)


def _batch(subject: Subject, request: Request, budget_bytes: int) -> Iterator[_Change]:
    if request.batch > 1:
        batch = _most(subject, request, "batch", budget_bytes, least=1)
        yield f"--batch-size {batch.batch}", batch


def _tiles(subject: Subject, request: Request, budget_bytes: int) -> Iterator[_Change]:
    if request.tiles:
        fewer = _most(subject, request, "tiles", budget_bytes, least=0)
        if fewer.tiles is not None and fewer.tiles < request.tiles:
            yield f"--max-tiles {fewer.tiles}", fewer
    elif request.tiles is None and request.images and visual_of(subject, request).views > request.images:
        yield "--max-tiles 0", replace(request, tiles=0)


def _pixels(subject: Subject, request: Request, budget_bytes: int) -> Iterator[_Change]:
    if request.tiles is None and request.images and isinstance(subject.geometry, PatchGeometry):
        smaller = _most(subject, request, "pixels", budget_bytes, least=None)
        if smaller.image_px < request.image_px:
            yield f"--image-size {smaller.image_px[0]}x{smaller.image_px[1]}", smaller


def _context(subject: Subject, request: Request, budget_bytes: int) -> Iterator[_Change]:
    shorter = _most(subject, request, "context", budget_bytes, least=None)
    if shorter.context < request.context:
        yield f"--max-model-len {shorter.context}", shorter


def _reduce(subject: Subject, request: Request, budget_bytes: int) -> Iterator[_Change]:  # noqa: ARG001
    for keep in KEEP_RATIOS:
        if request.images and subject.vision is not None and keep < request.keep:
            tokens = visual_of(subject, replace(request, keep=keep)).prompt
            spared = visual_of(subject, request).prompt - tokens
            context = max(tokens + 1, request.context - spared)
            text = f"--reduce downsample --keep {keep:g} --max-model-len {context}"
            yield text, replace(request, keep=keep, context=context)


def _small_head(subject: Subject, request: Request, budget_bytes: int) -> Iterator[_Change]:  # noqa: ARG001
    if request.lm_head in ("fp16", "fp32") and "llm.lm_head" not in subject.stored:
        yield "--lm-head int8", replace(request, lm_head="int8")


def _small_cache(subject: Subject, request: Request, budget_bytes: int) -> Iterator[_Change]:  # noqa: ARG001
    if request.kv_cache != "int4":
        yield "--kv-cache-dtype int4", replace(request, kv_cache="int4")


_CHANGES: tuple[Callable[[Subject, Request, int], Iterator[_Change]], ...] = (
    _weights, _release, _fused, _batch, _cache, _tower, _small_head, _tiles, _pixels, _reduce, _context, _small_cache,
)  # fmt: skip
"""From what costs nothing but time to what costs accuracy."""


def _most(subject: Subject, request: Request, unknown: str, budget_bytes: int, *, least: int | None) -> Request:
    """The request with as much of one thing as fits; the least of it where nothing does, or the request as it was."""
    try:
        return solve(subject, request, unknown, budget_bytes=budget_bytes).request
    except VlmEdgeError:
        if least is None:
            return request
        return replace(request, tiles=least) if unknown == "tiles" else replace(request, batch=least)

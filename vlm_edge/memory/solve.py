"""The inverse question: how much of one thing fits, everything else as asked. Exact: the answer fits, the next step does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from vlm_edge.core.geometry import PatchGeometry
from vlm_edge.errors import BadInput, DoesNotFit
from vlm_edge.memory.plan import plan_request
from vlm_edge.memory.request import MOST_BATCH, MOST_TILES, Request, Subject, visual_of
from vlm_edge.units import format_bytes

UNKNOWNS = ("tiles", "pixels", "context", "batch")
PIXEL_STEP_PX = 28
"""Step of the longer edge: one visual token of a Qwen-VL."""
MOST_EDGE_PX = 16384


@dataclass(frozen=True)
class Solution:
    """answer: the most that fits; for pixels the longer edge of the largest image.  limited_by: memory, context or model.

    next_peak_bytes: peak of the next step, where memory is what ends it.  request: the question with the answer filled in.
    """

    unknown: str
    answer: int
    limited_by: str
    peak_bytes: int
    next_peak_bytes: int | None
    request: Request


def solve(subject: Subject, request: Request, unknown: str, *, budget_bytes: int) -> Solution:
    """The largest value of one unknown whose plan is within the budget.

    tiles: beside the global view of each image, at most those that the family's own rules can cut.
    pixels: images of the asked proportions whose longer edge grows by
    PIXEL_STEP_PX; every smaller step fits too.  context: positions.  batch: sequences.
    Raises DoesNotFit where not even the least fits, BadInput for what the model does not have.
    """
    least, most, put = _range(subject, request, unknown)

    def peak(value: int) -> int | str:
        """Bytes; or why the question has no plan: the context's end or the model's."""
        try:
            return plan_request(subject, put(value), budget_bytes=budget_bytes).peak_bytes
        except BadInput:
            return "context"

    def fits(value: int) -> bool:
        found = peak(value)
        return isinstance(found, int) and found <= budget_bytes

    if not fits(least):
        plan_request(subject, put(least), budget_bytes=budget_bytes)  # says why, where that is not memory
        found = peak(least)
        needs = format_bytes(found) if isinstance(found, int) else "more"
        raise DoesNotFit(
            f"{unknown} {least} already needs {needs}; {format_bytes(budget_bytes)} are allowed",
            remedy="vlm-edge plan without --solve shows what takes it and what would help",
        )
    # sizes of images are rounded, tiles and positions are not: only the latter never need less when there is more of them
    best = _climb(fits, least, most) if unknown == "pixels" else _bisect(fits, least, most)
    following = peak(best + 1) if best < most else "model"
    reached = peak(best)
    return Solution(
        unknown=unknown,
        answer=best * PIXEL_STEP_PX if unknown == "pixels" else best,
        limited_by="memory" if isinstance(following, int) else following,
        peak_bytes=reached if isinstance(reached, int) else 0,
        next_peak_bytes=following if isinstance(following, int) else None,
        request=put(best),
    )


def _range(subject: Subject, request: Request, unknown: str) -> tuple[int, int, Callable[[int], Request]]:
    """Least and most value, and the request with it."""
    if unknown not in UNKNOWNS:
        raise BadInput(f"--solve has no value {unknown!r}", remedy=f"use one of: {', '.join(UNKNOWNS)}")
    if unknown in ("tiles", "pixels") and (subject.vision is None or not request.images):
        raise BadInput(f"--solve {unknown} needs images, and there are none", remedy="name a vision-language model")
    if unknown == "tiles":
        if subject.text.cross_attention_layers:
            raise BadInput("this model always has the same tiles", remedy="use --solve context, batch or pixels")
        if subject.geometry is not None and not subject.geometry.fixed_views:
            raise BadInput("this model sees images at their own size, not in tiles", remedy="use --solve pixels")
        if subject.free_tiles or subject.geometry is None:
            return 0, MOST_TILES, lambda n: replace(request, tiles=n)
        if subject.geometry.most_tiles == 0:
            raise BadInput("this model shows every image in one view", remedy="use --solve context, batch or pixels")
        return 0, subject.geometry.most_tiles, lambda n: replace(request, tiles=n)
    if unknown == "context":
        first = visual_of(subject, request).prompt + 1
        return first, subject.text.max_positions, lambda n: replace(request, context=n)
    if unknown == "batch":
        return 1, MOST_BATCH, lambda n: replace(request, batch=n)
    edge = max(request.image_px)
    shape = request.image_px

    def of_edge(steps: int) -> Request:
        width, height = (max(1, round(side * steps * PIXEL_STEP_PX / edge)) for side in shape)
        return replace(request, image_px=(width, height), tiles=None)

    return 1, _most_edge(subject) // PIXEL_STEP_PX, of_edge


def _most_edge(subject: Subject) -> int:
    """Beyond its largest size a family shrinks an image, and more pixels cost the host alone."""
    if isinstance(subject.geometry, PatchGeometry):
        return min(MOST_EDGE_PX, 2 * math.isqrt(subject.geometry.max_pixels))
    return MOST_EDGE_PX


def _bisect(fits: Callable[[int], bool], low: int, most: int) -> int:
    """The last value that fits, where all before it do."""
    high = most
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _climb(fits: Callable[[int], bool], low: int, most: int) -> int:
    """The last value before the first that does not fit."""
    while low < most and fits(low + 1):
        low += 1
    return low

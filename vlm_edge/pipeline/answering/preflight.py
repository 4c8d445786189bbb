"""Before a bundle is loaded: which one, on what device, and whether a question fits the budget there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vlm_edge.core import discover
from vlm_edge.core.bundle import Bundle, open_bundle
from vlm_edge.errors import BadInput, DamagedBundle
from vlm_edge.pipeline.answering.encoders import decoder_target
from vlm_edge.pipeline.answering.fit import Fitted, fit_tiles
from vlm_edge.pipeline.answering.options import AskOptions, Look
from vlm_edge.pipeline.answering.question_plan import ImageInput, check_fits, image_layouts, plan, source_header
from vlm_edge.pipeline.embedded import EMBEDDED, NANO
from vlm_edge.units import parse_bytes

NO_TILES = "; {family} shows these images in one view each, so there are no tiles to leave out"
ONE_VIEW_TOO = "; {family} cuts images by rules of its own, and one view of each whole image does not fit either"


def find_bundle(path: str | os.PathLike[str] | None) -> Bundle:
    """The bundle in a folder, or the embedded one for None or `nano`; its manifest is checked, nothing is loaded."""
    return open_bundle(NANO if path is None or str(path) == EMBEDDED else Path(path))


def preflight(
    bundle: Bundle,
    images: Sequence[ImageInput],
    options: AskOptions,
    budget: str | int | None,
    *,
    device: str = "auto",
    again: bool = False,
) -> Fitted:
    """Options that fit the budget, from the manifest and the images' headers alone, before anything is loaded or decoded.

    The number of tiles is lowered where that is enough; a family that cuts images by its own rules has all of its tiles or none.
    again: for a process that has answered before, which keeps some memory of it.
    Raises DoesNotFit where it is not, and BadImage or BadInput for what the headers and options already show.
    """
    limits, limit = bundle.manifest.limits, parse_bytes(budget) if isinstance(budget, str) else budget
    if device == "auto":
        # ONNX Runtime is asked only where there is a choice: importing it takes longer than all of this
        device = bundle.targets()[0] if len(bundle.targets()) == 1 else choose_device(bundle, device)
    family = discover.family(bundle.manifest.model.family)
    headers = tuple(source_header(image, options.max_pixels or limits.max_pixels) for image in images)
    look = Look.of(options, bundle.manifest.defaults, limits.max_tiles, family)
    tiles, remark = look.max_tiles, ""
    if not family.free_tiles and not look.chooses:
        tiles = max((layout.views - 1 for layout in image_layouts(bundle, headers, look)), default=0)
        remark = ONE_VIEW_TOO if tiles else NO_TILES
    fitted = fit_tiles(
        options, tiles, lambda o: plan(bundle, o, images=headers, budget_bytes=limit, device=device, again=again),
        any_number=family.free_tiles or look.chooses,
    )  # fmt: skip
    check_fits(fitted.plan, remark=remark.format(family=family.name))
    return fitted


def choose_device(bundle: Bundle, device: str) -> str:
    """`auto` is CUDA where bundle and ONNX Runtime have it, else CPU; raises BadInput, and DamagedBundle without a decoder."""
    if device not in ("auto", "cpu", "cuda", "tensorrt"):
        raise BadInput(f"--device has no value {device!r}", remedy="use auto, cpu, cuda or tensorrt")
    if not bundle.targets():
        raise DamagedBundle(
            f"bundle {bundle.manifest.name} has no decoder: its vision part alone was exported",
            remedy=f"add it: vlm-edge export MODEL {bundle.root} --component llm",
        )
    from vlm_edge.backends.onnx.session import available_targets

    usable = [target for target in available_targets() if target in bundle.targets()]
    if device == "auto":
        return "cuda" if "cuda" in usable else "cpu"
    target = decoder_target(device)
    if target not in bundle.targets():
        raise BadInput(
            f"bundle {bundle.manifest.name} has no decoder for {target}",
            remedy=f"use --device {bundle.targets()[0]}",
        )
    if target not in usable:
        raise BadInput(f"ONNX Runtime here has no {target}", remedy="use --device cpu, or pip install 'vlm-edge[gpu]'")
    return device

"""The plan: what each part needs in each phase, and whether the largest phase fits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from vlm_edge.core.geometry import ImageLayout, visual_token_count
from vlm_edge.core.specs import ModelSpec
from vlm_edge.memory import formulas

PHASES = ("load", "preprocess", "encode", "prefill", "decode")
Basis = Literal["exact", "bound", "measured"]
ENCODE_VIEWS = 8
PREFILL_CHUNK = 512
"""Views in one call of the encoder and positions in one of the decoder: the plan's bound, and what the runners keep to."""
RUNTIME_BYTES = 112 << 20
"""Python, NumPy, Pillow, tokenizers and ONNX Runtime before any weight: `vlm-edge doctor --json` prints this machine's."""


@dataclass(frozen=True)
class PlanItem:
    """One consumer of memory and the phases in which it is alive."""

    name: str
    bytes: int
    phases: tuple[str, ...]
    formula: str
    basis: Basis


@dataclass(frozen=True)
class Plan:
    """The peak is the largest phase, never the sum of all items."""

    items: tuple[PlanItem, ...]
    phases: Mapping[str, int]
    budget_bytes: int
    visual_tokens: int

    @property
    def peak_phase(self) -> str:
        """The phase that needs the most."""
        return max(self.phases, key=lambda phase: self.phases[phase])

    @property
    def peak_bytes(self) -> int:
        """Bytes that phase needs."""
        return self.phases[self.peak_phase]

    @property
    def fits(self) -> bool:
        """Whether the peak is within the budget."""
        return self.peak_bytes <= self.budget_bytes


@dataclass(frozen=True)
class Load:
    """What one run asks for: host bytes to decode each image, tiles per image, and the KV cache's length.

    layouts: how each image is cut, where a family's own rules do it; then `tiles` is not read.
    """

    decode_bytes: tuple[int, ...]
    tiles: int
    context_tokens: int
    kv_bits: int = 32
    layouts: tuple[ImageLayout, ...] | None = None


def plan_run(model: ModelSpec, artifact_bytes: Mapping[str, int], load: Load, *, budget_bytes: int) -> Plan:
    """Plan a run on a CPU from a bundle's own sizes.

    artifact_bytes: bytes by role; weights count once, since ONNX Runtime repacks them while it reads the file.
    """
    visual, encode, how = _encoding(model, load)
    context = load.context_tokens
    # Tokens that see all of their prompt are read in one piece.
    chunk = context if model.text.bidirectional_prefix else min(context, PREFILL_CHUNK)
    always = PHASES
    later = PHASES[1:]
    llm = sum(size for role, size in artifact_bytes.items() if role.startswith("llm.graph"))
    tower = sum(size for role, size in artifact_bytes.items() if role.startswith("vision"))
    embeds = 4 * model.text.hidden
    items = (
        PlanItem("runtime", RUNTIME_BYTES, always, "interpreter and libraries", "measured"),
        PlanItem("llm.weights", llm, always, "decoder files", "exact"),
        PlanItem("llm.embedding", artifact_bytes.get("llm.embedding", 0), always, "table, memory-mapped", "bound"),
        PlanItem("vision.weights", tower, always, "tower and projector files", "exact"),
        PlanItem(
            "image.decode",
            max(load.decode_bytes, default=0),
            ("preprocess",),
            "the largest image, by its format",
            "bound",
        ),
        PlanItem(
            "vision.activations",
            encode,
            ("encode",),
            how,
            "bound",
        ),
        PlanItem("visual_embeddings", 2 * visual * embeds, ("encode", "prefill", "decode"), "2 copies, fp32", "exact"),
        PlanItem(
            "kv_cache",
            formulas.kv_cache_bytes(model.text, tokens=context, elem_bits=load.kv_bits),
            later,
            f"{context} positions at {load.kv_bits} bits",
            "exact",
        ),
        PlanItem(
            "prefill.activations",
            formulas.prefill_activation_bytes(model.text, tokens=chunk),
            ("prefill",),
            f"chunks of {chunk}",
            "bound",
        ),
        PlanItem("logits", 4 * model.text.vocab, ("prefill", "decode"), "last position, fp32", "exact"),
    )
    phases = {phase: sum(item.bytes for item in items if phase in item.phases) for phase in PHASES}
    return Plan(items, phases, budget_bytes, visual)


def _encoding(model: ModelSpec, load: Load) -> tuple[int, int, str]:
    """Visual tokens and markers of all images, the encoder's bytes, and how those come about."""
    if load.layouts is None:
        images = len(load.decode_bytes)
        views = min(images * (1 + load.tiles), ENCODE_VIEWS)
        tokens = visual_token_count(model.geometry, tiles=load.tiles, images=images)
        return tokens, formulas.vision_activation_bytes(model.vision, views=views), f"{views} views in one call"
    tokens = sum(layout.visual_tokens + layout.marker_tokens for layout in load.layouts)
    # One image at a time, all of its pixels prepared, at most ENCODE_VIEWS of its views in one call.
    largest = max(load.layouts, key=lambda layout: layout.views * _view_px(model, layout), default=None)
    if largest is None:
        return tokens, 0, "no image"
    patch_px = model.vision.patch_px
    side = patch_px * math.ceil(math.sqrt(_view_px(model, largest)) / patch_px)
    views = min(largest.views, ENCODE_VIEWS)
    # The formula has the pixels of the call once; views that wait, and repeated frames, come on top.
    more = largest.views * model.vision.temporal_patch - views
    encode = formulas.vision_activation_bytes(replace(model.vision, image_px=side), views=views)
    return tokens, encode + more * formulas.FLOAT32_BYTES * 3 * side * side, f"{views} views in one call"


def _view_px(model: ModelSpec, layout: ImageLayout) -> int:
    """Pixels of the largest view."""
    if model.geometry.fixed_views:
        return model.geometry.view_px**2
    return layout.canvas_px[0] * layout.canvas_px[1]

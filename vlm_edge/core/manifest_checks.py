"""The ranges of a manifest's numbers: a fitting hash only shows who wrote them, not that anything can run with them."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import fields
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING

from vlm_edge.errors import DamagedBundle

if TYPE_CHECKING:
    from vlm_edge.core.bundle import Manifest
    from vlm_edge.core.geometry import Geometry
    from vlm_edge.core.recipe import Recipe

TILINGS = ("auto", "grid", "none")
REDUCTIONS = ("none", "threshold", "random", "downsample", "tome", "divprune", "cdpruner", "landmark")
SALIENCIES = ("detail", "cnn", "novelty")
_NAMES = {"defaults.tiling": TILINGS, "defaults.reduce": REDUCTIONS, "defaults.saliency": SALIENCIES}
_MOST = 1 << 24
"""Far beyond any model, and small enough for every product of a few such numbers."""
RANGES: tuple[tuple[str, tuple[str, ...], float, float], ...] = (
    ("model.vision", ("width", "heads", "mlp", "image_px", "patch_px"), 1, _MOST),
    ("model.vision", ("layers",), 1, 4096),
    ("model.vision", ("temporal_patch", "joint_views"), 1, 64),
    ("model.vision", ("prefix_tokens", "window_px", "full_attention_layers"), 0, _MOST),
    ("model.projector", ("input", "output"), 1, _MOST),
    ("model.projector", ("merge",), 1, 64),
    ("model.projector", ("hidden",), 0, _MOST),
    ("model.text", ("hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab", "max_positions"), 1, _MOST),
    ("model.text", ("layers",), 1, 4096),
    ("model.text", ("sliding_window", "sliding_layers", "cross_attention_layers"), 0, _MOST),
    ("model.geometry", ("view_px",), 16, 8192),  # below 16 px a tile has no cells to look for detail in
    ("model.geometry", ("grid",), 1, 4096),
    ("model.geometry", ("separator_tokens",), 0, 4096),
    ("limits", ("max_tiles",), 0, 1 << 16),
    ("limits", ("max_model_len", "max_images", "batch_size"), 1, _MOST),
    ("limits", ("max_pixels",), 1, 1 << 40),
    ("defaults", ("threshold", "keep"), 1e-12, 1),
    ("defaults", ("max_new_tokens",), 1, _MOST),
)
_OWN_RULES: Mapping[str, tuple[float, float]] = {
    "pinpoints": (16, 1 << 16), "min_tiles": (1, 1024), "max_tiles": (1, 1024), "longest_px": (1, 1 << 16),
    "shortest_px": (1, 1 << 16), "patch_px": (1, 1 << 13), "merge": (1, 64), "min_pixels": (1, 1 << 28),
    "max_pixels": (1, 1 << 28), "marker_tokens": (0, 4096), "tile_marker_tokens": (0, 4096),
    "row_end_tokens": (0, 4096), "blank_line_tokens": (-4096, 4096), "whole_marker_tokens": (0, 4096),
}  # fmt: skip
"""Ranges of what a family's geometry has beside the fields of all: as wide as the readers of checkpoints allow."""


def check_manifest(manifest: Manifest) -> None:
    """Raise DamagedBundle, with the field named, for a number outside its range or two that exclude each other."""
    if wrong := out_of_range(manifest, tuple(dict.fromkeys(part for part, *_ in RANGES))):
        raise _refusal(wrong)
    _check_own_rules(manifest.model.geometry)
    vision, text, limits = manifest.model.vision, manifest.model.text, manifest.limits
    if vision.patch_px > vision.image_px:
        raise _refusal(f"model.vision.patch_px is {vision.patch_px}, more than image_px, {vision.image_px}")
    if text.heads % text.kv_heads:
        raise _refusal(f"model.text.kv_heads is {text.kv_heads}, which does not divide {text.heads} heads")
    if manifest.model.projector.output != text.hidden:
        raise _refusal(f"model.projector.output is {manifest.model.projector.output}, model.text.hidden {text.hidden}")
    if limits.max_model_len > text.max_positions:
        raise _refusal(
            f"limits.max_model_len is {limits.max_model_len}; the decoder has {text.max_positions} positions"
        )


def out_of_range(holder: Manifest | Recipe, parts: tuple[str, ...] = ("limits", "defaults")) -> str:
    """The first field of those parts that cannot be, in words; empty where all can. A recipe has limits and defaults too."""
    for part, names, least, most in RANGES:
        for name in names if part in parts else ():
            value = attrgetter(f"{part}.{name}")(holder)
            # written so that NaN, which compares as false with everything, is refused
            if not all(least <= number <= most for number in (value if isinstance(value, tuple) else (value,))):
                return f"{part}.{name} is {reprlib.repr(value)}, not within {least} to {most}"
    for name, allowed in _NAMES.items():
        if (value := attrgetter(name)(holder)) not in allowed:
            return f"{name} is {reprlib.repr(value)}, not one of {', '.join(allowed)}"
    new, context = holder.defaults.max_new_tokens, holder.limits.max_model_len
    if new >= context:
        return f"defaults.max_new_tokens is {new}, which leaves nothing of {context} positions"
    return ""


def _check_own_rules(geometry: Geometry) -> None:
    for field in fields(geometry):
        least, most = _OWN_RULES.get(field.name, (None, None))
        value = getattr(geometry, field.name)
        numbers = [*chain(*value)] if field.name == "pinpoints" else [value]
        if least is None or most is None or (len(numbers) <= 2048 and all(least <= each <= most for each in numbers)):
            continue
        raise _refusal(f"model.geometry.{field.name} is {reprlib.repr(value)}, not within {least} to {most}")
    sides = chain(*getattr(geometry, "pinpoints", ()))
    if uneven := [side for side in sides if side % geometry.view_px]:
        raise _refusal(f"model.geometry.pinpoints has {uneven[0]}, no multiple of views of {geometry.view_px} px")
    for low, high in (("min_tiles", "max_tiles"), ("shortest_px", "longest_px"), ("min_pixels", "max_pixels")):
        if getattr(geometry, low, 0) > getattr(geometry, high, _MOST):
            raise _refusal(f"model.geometry.{low} is {getattr(geometry, low)}, more than {high}")


def _refusal(what: str) -> DamagedBundle:
    return DamagedBundle(f"the manifest cannot be right: {what}", remedy="build the bundle again")

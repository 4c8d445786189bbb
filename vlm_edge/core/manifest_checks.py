"""The ranges of a manifest's numbers: a fitting hash only shows who wrote them, not that anything can run with them."""

from __future__ import annotations

import reprlib
from operator import attrgetter
from typing import TYPE_CHECKING

from vlm_edge.errors import DamagedBundle

if TYPE_CHECKING:
    from vlm_edge.core.bundle import Manifest

TILINGS = ("auto", "grid", "none")
REDUCTIONS = ("none", "threshold", "random", "downsample")
_NAMES = {"defaults.tiling": TILINGS, "defaults.reduce": REDUCTIONS}
_MOST = 1 << 24
"""Far beyond any model, and small enough for every product of a few such numbers."""
_RANGES: tuple[tuple[str, tuple[str, ...], float, float], ...] = (
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


def check_manifest(manifest: Manifest) -> None:
    """Raise DamagedBundle, with the field named, for a number outside its range or two that exclude each other."""
    for part, names, least, most in _RANGES:
        for name in names:
            value = attrgetter(f"{part}.{name}")(manifest)
            # written so that NaN, which compares as false with everything, is refused
            if not all(least <= number <= most for number in (value if isinstance(value, tuple) else (value,))):
                raise _refusal(f"{part}.{name} is {reprlib.repr(value)}, not within {least} to {most}")
    for name, allowed in _NAMES.items():
        if (value := attrgetter(name)(manifest)) not in allowed:
            raise _refusal(f"{name} is {reprlib.repr(value)}, not one of {', '.join(allowed)}")
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
    if manifest.defaults.max_new_tokens >= limits.max_model_len:
        tokens = manifest.defaults.max_new_tokens
        raise _refusal(f"defaults.max_new_tokens is {tokens}, which leaves nothing of {limits.max_model_len} positions")


def _refusal(what: str) -> DamagedBundle:
    return DamagedBundle(f"the manifest cannot be right: {what}", remedy="build the bundle again")

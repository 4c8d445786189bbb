"""Qwen2-VL and Qwen2.5-VL: how images become patches, by a checkpoint's files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_edge.core.geometry import PatchGeometry
from vlm_edge.core.specs import ModelSpec
from vlm_edge.models.fields import Fields
from vlm_edge.models.preprocessor import (
    BICUBIC,
    CLIP_MEAN,
    CLIP_STD,
    ViewSettings,
    normalisation,
    preprocessor_fields,
    resample_field,
    size_edges,
)

TILE_PX = 448
"""Side of the tiles when an image is shown as a global view and tiles; about 16 x 16 tokens."""
PUBLISHED_PIXELS = {"min_pixels": 56 * 56, "max_pixels": 16384 * 28 * 28}
"""The processor's own default allows a thirteenth of that: a plan by it would be too small for the published checkpoints."""
_MOST_PIXELS = 1 << 28


@dataclass(frozen=True)
class PackedSettings(ViewSettings[PatchGeometry]):
    """frames: how often a still image is repeated in time.  window_px: side of an attention window; None: no windows."""

    frames: int
    window_px: int | None = None

    @property
    def window_tokens(self) -> int | None:
        """Side of an attention window in merged tokens."""
        return None if self.window_px is None else self.window_px // (self.geometry.patch_px * self.geometry.merge)


def packed_settings(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any], *, types: Sequence[str], window_px: int | None = None
) -> PackedSettings:
    """Settings of a family whose processor is one of `types`; window_px: its windows where config.json names none.

    Raises BadInput with the field's name, also where the two files disagree on how patches are cut.
    """
    fields = preprocessor_fields(preprocessor, types=types)
    vision = Fields(config).part("vision_config", optional=True)
    patch_px, merge = (
        _agreed(vision, fields, "patch_size", 14),
        _agreed(vision, fields, "merge_size", 2, "spatial_merge_size"),
    )
    least, most = _pixel_limits(fields)
    step = patch_px * merge
    if most < step * step:
        raise fields.error("max_pixels", f"of {most} is less than one token of {step} x {step} px")
    if window_px is not None:
        window_px = vision.count("window_size", window_px)
        if window_px % step:
            raise vision.error("window_size", f"of {window_px} px is no multiple of a token of {step} px")
    side = max(1, TILE_PX // step)
    return PackedSettings(
        geometry=PatchGeometry(
            view_px=side * step, grid=(side, side), patch_px=patch_px, merge=merge, min_pixels=least, max_pixels=most
        ),
        resample=resample_field(fields, BICUBIC),
        pixels=normalisation(fields, CLIP_MEAN, CLIP_STD),
        frames=_agreed(vision, fields, "temporal_patch_size", 2),
        window_px=window_px,
    )


def assumed_preprocessor(spec: ModelSpec) -> Mapping[str, Any]:
    """What preprocessor_config.json says where config.json comes alone: the published limits; the rest is the encoder's."""
    cell = spec.vision.patch_px, spec.projector.merge, spec.vision.temporal_patch
    return {**PUBLISHED_PIXELS, **dict(zip(("patch_size", "merge_size", "temporal_patch_size"), cell, strict=True))}


def _agreed(vision: Fields, fields: Fields, key: str, default: int, of_tower: str | None = None) -> int:
    tower = vision.count(of_tower or key, default)
    if fields.count(key, default) != tower:
        raise fields.error(key, f"of {fields.count(key, default)} differs from config.json's, {tower}")
    return tower


def _pixel_limits(fields: Fields) -> tuple[int, int]:
    """(min, max) pixels: named as such in older files, as the square of an edge in newer ones."""
    names = ("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")
    defaults = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
    size = size_edges(fields, "size", defaults, number_means=())
    least, most = (fields.count(old, size.get(new, size.get(old)), maximum=_MOST_PIXELS) for old, new in names)
    if most < least:
        raise fields.error("max_pixels", f"of {most} is less than min_pixels, {least}")
    return least, most

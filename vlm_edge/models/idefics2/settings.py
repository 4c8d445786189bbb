"""Idefics2: how images are cut and scaled, by a checkpoint's files alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlm_edge.core.geometry import QuarterGeometry
from vlm_edge.models.fields import Fields
from vlm_edge.models.idefics2.spec import PERCEIVER
from vlm_edge.models.preprocessor import (
    BILINEAR,
    HALF,
    ViewSettings,
    normalisation,
    preprocessor_fields,
    resample_field,
    size_edges,
)


@dataclass(frozen=True)
class ImageSettings(ViewSettings[QuarterGeometry]):
    """patch_px: side of a patch.  positions_side: rows and columns of the encoder's table of position embeddings."""

    patch_px: int
    positions_side: int


def settings_from(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> ImageSettings:
    """From config.json and preprocessor_config.json; raises BadInput with the field's name."""
    steps = ("do_image_splitting", "do_pad")
    fields = preprocessor_fields(preprocessor, types=("Idefics2ImageProcessor",), steps=steps)
    whole = Fields(config)
    vision = whole.part("vision_config", optional=True)
    sizes = size_edges(fields, "size", {"shortest_edge": 378, "longest_edge": 980}, number_means=())
    if set(sizes) != {"shortest_edge", "longest_edge"}:
        raise fields.error("size", f"has not just a shortest and a longest edge: {sizes!r}")
    edges = fields.with_value("size", sizes).part("size")
    shortest, longest = (edges.count(key) for key in ("shortest_edge", "longest_edge"))
    if longest < shortest:
        raise fields.error("size", f"has a longest_edge of {longest} px, less than its shortest_edge, {shortest} px")
    patch_px = vision.count("patch_size")
    if patch_px > shortest:
        raise vision.error("patch_size", f"of {patch_px} px is larger than the shortest edge, {shortest} px")
    resampler = whole.part("perceiver_config", optional=True)
    latents = resampler.count("resampler_n_latents", PERCEIVER["resampler_n_latents"])
    return ImageSettings(
        geometry=QuarterGeometry(
            view_px=longest,
            grid=(1, latents),
            shortest_px=shortest,
            longest_px=longest,
            split=fields.flag("do_image_splitting", False),
        ),
        resample=resample_field(fields, BILINEAR),
        pixels=normalisation(fields, HALF, HALF),
        patch_px=patch_px,
        positions_side=vision.count("image_size", 224) // patch_px,
    )

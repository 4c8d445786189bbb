"""Idefics3 and SmolVLM: an image scaled up or down to a grid of tiles, and the whole of it as the last view."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from vlm_edge.core.geometry import ImageLayout, SplitGeometry
from vlm_edge.core.image_inputs import ImageInputs
from vlm_edge.models.fields import Fields
from vlm_edge.models.preprocessor import (
    HALF,
    LANCZOS,
    ViewSettings,
    normalisation,
    preprocessor_fields,
    resample_field,
    same_view,
    size_edges,
)
from vlm_edge.models.towers import patch_grid, shuffled_grid
from vlm_edge.vision.resize import Rgb, cut, require_rgb, resized, source_box, tile_boxes

ImageSettings = ViewSettings[SplitGeometry]
_TYPES = ("Idefics3ImageProcessor", "SmolVLMImageProcessor")
AROUND = "<fake_token_around_image>"
WHOLE = "<global-img>"


def settings_from(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> ImageSettings:
    """From config.json and preprocessor_config.json; raises BadInput with the field's name."""
    fields = preprocessor_fields(preprocessor, types=_TYPES, steps=("do_image_splitting", "do_pad"))
    whole = Fields(config)
    vision = whole.part("vision_config", optional=True)
    view_px = _longest(fields, "max_image_size", 364)
    same_view(fields, "max_image_size", view_px, vision, 224)
    side = patch_grid(vision, view_px, patch_px=vision.count("patch_size"))
    return ViewSettings(
        geometry=SplitGeometry(
            view_px=view_px,
            grid=shuffled_grid(whole, side, whole.count("scale_factor", 2), name="scale_factor"),
            longest_px=_longest(fields, "size", 4 * 364),
            split=fields.flag("do_image_splitting", True),
        ),
        resample=resample_field(fields, LANCZOS),
        pixels=normalisation(fields, HALF, HALF),
    )


def _longest(fields: Fields, key: str, default: int) -> int:
    sizes = size_edges(fields, key, {"longest_edge": default}, number_means=("longest_edge",))
    if "longest_edge" not in sizes:
        raise fields.error(key, f"has no longest_edge: {sizes!r}")
    return fields.with_value(key, sizes["longest_edge"]).count(key)


def prepare(image: Rgb, settings: ImageSettings) -> ImageInputs:
    """uint8 [H, W, 3] -> pixel_values float32 [V, 3, S, S], tiles row by row, then the whole; raises BadImage.

    pixel_attention_mask bool [V, S, S] is all true: these views have no padding.
    """
    image_px = require_rgb(image)
    geometry = settings.geometry
    layout = geometry.layout(image_px)
    # Two resizes, with 8 bits in between, are what the models were trained on.
    canvas = resized(
        resized(image, geometry.resized_px(image_px), settings.resample), layout.canvas_px, settings.resample
    )
    tiles = tile_boxes(layout.canvas_px, geometry.view_px) if layout.views > 1 else ()
    whole = resized(canvas, (geometry.view_px, geometry.view_px), settings.resample)
    views = [*(cut(canvas, tile) for tile in tiles), whole]
    boxes = (*(source_box(tile, layout.content, image_px) for tile in tiles), (0, 0, *image_px))
    arrays = {
        "pixel_values": settings.pixels.stack(views),
        "pixel_attention_mask": np.ones((len(views), geometry.view_px, geometry.view_px), np.bool_),
    }
    return ImageInputs(arrays, boxes, layout)


def marker_texts(layout: ImageLayout) -> tuple[str, ...]:
    """Text before each view, and after the last: views + 1 pieces."""
    pieces: list[str] = []
    for row in range(layout.rows):
        for col in range(layout.cols):
            row_end = "\n" if row and not col else ""
            pieces.append(f"{row_end}{AROUND}<row_{row + 1}_col_{col + 1}>")
    blank_line = "\n\n" if pieces else ""
    return (*pieces, f"{blank_line}{AROUND}{WHOLE}", AROUND)


def with_markers(geometry: SplitGeometry, count: Callable[[str], int]) -> SplitGeometry:
    """The geometry with marker tokens as a tokenizer counts them; `count` gives the number of tokens of a text.

    Exact where all of its tile markers are of one length, as they are where the tokenizer knows them as single tokens.
    """
    return replace(
        geometry,
        tile_marker_tokens=count(f"{AROUND}<row_1_col_1>"),
        row_end_tokens=count("\n"),
        blank_line_tokens=count("\n\n") - count("\n"),
        whole_marker_tokens=count(f"{AROUND}{WHOLE}") + count(AROUND),
    )

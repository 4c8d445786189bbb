"""Idefics3 and SmolVLM: an image scaled up or down to a grid of tiles, and the whole of it as the last view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from vlm_edge.core.geometry import ImageLayout, SplitGeometry
from vlm_edge.core.image_inputs import ImageInputs
from vlm_edge.models.idefics3.settings import ImageSettings, settings_from
from vlm_edge.vision.raster import Picture
from vlm_edge.vision.resize import cell_boxes, cut, require_rgb, resized, source_box

__all__ = ["ImageSettings", "prepare", "settings_from"]


AROUND = "<fake_token_around_image>"
WHOLE = "<global-img>"


def prepare(image: Picture, settings: ImageSettings, layout: ImageLayout | None = None) -> ImageInputs:
    """uint8 [H, W, 3] -> pixel_values float32 [V, 3, S, S], tiles row by row, then the whole; raises BadImage.

    pixel_attention_mask bool [V, S, S] is all true: these views have no padding.
    layout: another one than the family's own, by settings.geometry.subset.
    """
    image_px = require_rgb(image)
    geometry = settings.geometry
    layout = layout or geometry.layout(image_px)
    # Two resizes, with 8 bits in between, are what the models were trained on.
    canvas = resized(
        resized(image, geometry.resized_px(image_px), settings.resample), layout.canvas_px, settings.resample
    )
    tiles = cell_boxes(layout, geometry.view_px)
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
    before = None
    for row, col in layout.shown_cells:
        row_end = "\n" if before not in (None, row) else ""
        pieces.append(f"{row_end}{AROUND}<row_{row + 1}_col_{col + 1}>")
        before = row
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

"""Where an image's visual tokens went: how many of them stand for each part of it, as a panel of `run --explain`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlm_edge.core.geometry import TokenGeometry
from vlm_edge.pipeline.answering.answer import Answer
from vlm_edge.pipeline.explaining.view_panels import OUTLINE, at_size, titled
from vlm_edge.tokens.positions import DROPPED
from vlm_edge.vision.raster import Picture

MEGAPIXEL = 1_000_000
_STRONGEST = 0.85
"""Share of the colour where tokens are densest; the image shows through."""


def token_density(
    answer: Answer, geometry: TokenGeometry, *, image_px: tuple[int, int], shown_px: tuple[int, int]
) -> NDArray[np.float64]:
    """Tokens a megapixel of the source, [height, width] of `shown_px`, over all views that show a place.

    A token that several patches were merged into is shared out among them; a patch whose token was dropped counts nothing.
    """
    width, height = shown_px
    found = np.zeros((height, width))
    boxes = answer.views or ((0, 0, *image_px), *(tile.box for tile in answer.tiles))
    # without tiles, an image may have been decoded at a smaller scale, in which its views are told
    decoded = image_px if answer.tiles else (max(box[2] for box in boxes), max(box[3] for box in boxes))
    rows, cols = geometry.grid
    for box, view in zip(boxes, answer.members, strict=True):
        x0, y0, x1, y1 = box
        if x0 >= x1 or y0 >= y1:  # nothing but padding
            continue
        members = np.array(view)
        sizes = np.bincount(members[members != DROPPED], minlength=1 + max(0, int(members.max())))
        share = np.where(members == DROPPED, 0.0, 1 / np.maximum(1, sizes[members])).reshape(rows, cols)
        share *= (
            rows * cols * MEGAPIXEL / ((x1 - x0) * (y1 - y0)) * (decoded[0] * decoded[1]) / (image_px[0] * image_px[1])
        )
        across = _edges(x0, x1, cols, width / decoded[0])
        down = _edges(y0, y1, rows, height / decoded[1])
        for row in range(rows):
            for col in range(cols):
                found[down[row] : down[row + 1], across[col] : across[col + 1]] += share[row, col]
    return found


def _edges(begin: int, end: int, count: int, scale: float) -> list[int]:
    return [round((begin + i * (end - begin) / count) * scale) for i in range(count + 1)]


def density_panel(
    pixels: Picture, image_px: tuple[int, int], answer: Answer, geometry: TokenGeometry, *, longest_px: int
) -> Image.Image:
    """The image in grey, the more green the more tokens stand for a place, on a logarithmic scale.

    pixels: RGB uint8 [H, W, 3], or a raster; may be smaller than the source of image_px (width, height).  longest_px: of the panel.
    """
    scale = longest_px / max(image_px)
    shown = tuple(max(1, round(side * scale)) for side in image_px)
    size = (shown[0], shown[1])
    density = token_density(answer, geometry, image_px=image_px, shown_px=size)
    seen = density[density > 0]
    least, most = (float(seen.min()), float(seen.max())) if seen.size else (1.0, 1.0)
    spread = np.log(max(most / least, 1 + 1e-9))
    strength = (
        np.where(density > 0, 0.15 + 0.85 * np.log(np.maximum(density, least) / least) / spread, 0.0) * _STRONGEST
    )
    grey = np.asarray(at_size(pixels, size, Image.Resampling.BICUBIC).convert("L"), np.float64)[..., None]
    mixed = grey * (1 - strength[..., None]) + np.array(OUTLINE) * strength[..., None]
    return titled(f"tokens by area: {least:,.0f} to {most:,.0f} a megapixel", Image.fromarray(mixed.astype(np.uint8)))

"""The views that the encoder saw, enlarged, each with the outlines of its visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vlm_edge.core.geometry import Box, Size, TokenGeometry
from vlm_edge.pipeline.answering.answer import Answer
from vlm_edge.pipeline.explaining.lettering import Letters
from vlm_edge.tokens.positions import DROPPED
from vlm_edge.vision import preprocess
from vlm_edge.vision.raster import Picture, crops, shrunk, size_of
from vlm_edge.vision.resize import resized

Rgb = NDArray[np.uint8]
Edges = tuple[list[int], list[int]]
OUTLINE = (0, 128, 96)
INK = (28, 32, 36)
# Tints set merged regions apart from single tokens and from each other; light, so that the text below stays readable.
TINTS = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66))
TINT_ALPHA, OUTLINE_ALPHA = 56, 190
GREY, HATCH = (134, 138, 142, 140), (64, 68, 72, 220)
SCALE, LEAST_PX, MOST_PX, LEAST_PATCH_PX = 3, 252, 420, 8
TITLE_PX, HATCH_STEP_PX = 24, 9
_SHARP = 2
"""Times a view's side: as many pixels as it may be made of without a difference that is seen."""


def view_panels(pixels: Picture, answer: Answer, geometry: TokenGeometry) -> list[Image.Image]:
    """Every view in the encoder's order, each under a line about it; tiles are numbered as the answer's tiles are.

    pixels: RGB uint8 [H, W, 3], of full size where the answer has tiles, or a raster.
    """
    panels = []
    for i, (title, view) in enumerate(_own_views(pixels, answer, geometry) or _free_views(pixels, answer, geometry)):
        if view is None:  # nothing but padding
            continue
        if i < len(answer.members):
            members = np.array(answer.members[i])
            title = f"{title}: {len(members)} -> {len(np.unique(members[members != DROPPED]))} tokens"
            panels.append(titled(title, token_map(view, members.reshape(geometry.grid))))
        else:
            panels.append(titled(title, _enlarged(view, geometry.grid)))
    return panels


def at_size(pixels: Picture, size: Size, method: Image.Resampling) -> Image.Image:
    """Resized to (width, height): an array in two steps where it is much larger, which is faster, a raster by parts."""
    if isinstance(pixels, np.ndarray):
        return Image.fromarray(pixels).resize(size, method, reducing_gap=3.0)
    return Image.fromarray(shrunk(pixels, size, method))


def _free_views(pixels: Picture, answer: Answer, geometry: TokenGeometry) -> list[tuple[str, Rgb | None]]:
    """The global view and then each tile."""
    side = geometry.view_px
    parts = crops(pixels, [tile.box for tile in answer.tiles])
    tiles = [(f"tile {n}", preprocess.filled(part, side)) for n, part in enumerate(parts, start=1)]
    return [("whole image", preprocess.global_view(pixels, side)), *tiles]


def _tile_parts(pixels: Picture, boxes: Sequence[Box], side_px: int) -> list[Rgb]:
    """What each box shows; of a raster in one reading, and at a reduced scale where boxes are far larger than a view."""
    largest = max((max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes), default=0)
    if isinstance(pixels, np.ndarray) or largest <= _SHARP * side_px:
        return crops(pixels, boxes)
    scale = _SHARP * side_px / largest
    width, height = (max(1, round(edge * scale)) for edge in size_of(pixels))
    small = shrunk(pixels, (width, height), Image.Resampling.BICUBIC)
    parts = []
    for box in boxes:
        x0, y0, x1, y1 = (round(edge * scale) for edge in box)
        x0, y0 = min(x0, width - 1), min(y0, height - 1)
        parts.append(small[y0 : max(y0 + 1, y1), x0 : max(x0 + 1, x1)])
    return parts


def _own_views(pixels: Picture, answer: Answer, geometry: TokenGeometry) -> list[tuple[str, Rgb | None]]:
    """The views that a family's own rules cut; padding is not shown."""
    numbers = {tile.box: number for number, tile in enumerate(answer.tiles, start=1)}
    views: list[tuple[str, Rgb | None]] = []
    cut = [box for box in answer.views if box in numbers]
    parts = dict(zip(cut, _tile_parts(pixels, cut, geometry.view_px), strict=True))
    for box in answer.views:
        if not answer.tiles or box not in numbers:
            # Without tiles, `pixels` may be smaller than what was encoded; a view of padding has no area.
            whole = box[0] < box[2] and box[1] < box[3]
            views.append(("whole image", _fitted(pixels, geometry) if whole else None))
        else:
            views.append((f"tile {numbers[box]}", _fitted(parts[box], geometry)))
    return views


def _fitted(part: Picture, geometry: TokenGeometry) -> Rgb:
    """In the proportions in which the encoder sees it: a square, or the image's own."""
    if geometry.fixed_views:
        return preprocess.global_view(part, geometry.view_px)
    width, height = size_of(part)
    scale = MOST_PX / max(width, height)
    return resized(part, (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC)


def token_map(view: Rgb, owner: NDArray[np.int_]) -> Image.Image:
    """A view with one outline round each token; patches that became one token share a tint, dropped ones are hatched.

    view: uint8 [S, S, 3].  owner: [rows, cols], the token that each patch went to, or DROPPED.
    """
    rows, cols = owner.shape
    image = _enlarged(view, (rows, cols)).convert("RGBA")
    edges = _edges(image.width, cols), _edges(image.height, rows)
    layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    _fill(ImageDraw.Draw(layer), owner, edges)
    _hatch(layer, owner == DROPPED)
    _outline(ImageDraw.Draw(layer), owner, edges)
    image.alpha_composite(layer)
    return image.convert("RGB")


def _enlarged(view: Rgb, grid: tuple[int, int]) -> Image.Image:
    image = Image.fromarray(view)
    if image.width != image.height:
        return image
    side = max(min(SCALE * len(view), MOST_PX), LEAST_PX, LEAST_PATCH_PX * max(grid))
    return image.resize((side, side), Image.Resampling.BICUBIC)


def _edges(side_px: int, patches: int) -> list[int]:
    return [round(i * side_px / patches) for i in range(patches + 1)]


def _fill(draw: ImageDraw.ImageDraw, owner: NDArray[np.int_], edges: Edges) -> None:
    """A tint for patches that share a token, and grey for those that have none."""
    tokens, sizes = np.unique(owner[owner != DROPPED], return_counts=True)
    tints = {int(token): TINTS[i % len(TINTS)] for i, token in enumerate(tokens[sizes > 1])}
    for (row, col), token in np.ndenumerate(owner):
        box = edges[0][col], edges[1][row], edges[0][col + 1] - 1, edges[1][row + 1] - 1
        if token == DROPPED:
            draw.rectangle(box, fill=GREY)
        elif int(token) in tints:
            draw.rectangle(box, fill=(*tints[int(token)], TINT_ALPHA))


def _hatch(layer: Image.Image, dropped: NDArray[np.bool_]) -> None:
    if not dropped.any():
        return
    hatched = layer.copy()
    draw = ImageDraw.Draw(hatched)
    for start in range(-layer.height, layer.width, HATCH_STEP_PX):
        draw.line((start, layer.height, start + layer.height, 0), fill=HATCH)
    mask = Image.fromarray(dropped.astype(np.uint8) * 255)
    layer.paste(hatched, mask=mask.resize(layer.size, Image.Resampling.NEAREST))


def _outline(draw: ImageDraw.ImageDraw, owner: NDArray[np.int_], edges: Edges) -> None:
    """A line wherever two neighbouring patches belong to different tokens, and one round the view."""
    colour = (*OUTLINE, OUTLINE_ALPHA)
    for row, (top, bottom) in enumerate(pairwise(edges[1])):
        for col, (left, right) in enumerate(pairwise(edges[0])):
            if col and owner[row, col] != owner[row, col - 1]:
                draw.line((left, top, left, bottom), fill=colour, width=2)
            if row and owner[row, col] != owner[row - 1, col]:
                draw.line((left, top, right, top), fill=colour, width=2)
    draw.rectangle((0, 0, edges[0][-1] - 1, edges[1][-1] - 1), outline=colour, width=2)


def titled(title: str, view: Image.Image) -> Image.Image:
    """A picture under a line about it."""
    letters = Letters(title, 15)
    panel = Image.new("RGB", (max(view.width, letters.width), TITLE_PX + view.height), (255, 255, 255))
    letters.draw(ImageDraw.Draw(panel), (0, 0), INK)
    panel.paste(view, (0, TITLE_PX))
    return panel

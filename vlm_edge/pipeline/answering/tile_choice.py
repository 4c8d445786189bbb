"""Which tiles of an image a Look shows: anywhere on it, or from the family's own grid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vlm_edge.core.contracts import Floats, SaliencyRunner
from vlm_edge.core.geometry import ImageLayout, Size, TokenGeometry
from vlm_edge.core.layout import Box, Cell
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.answering.options import CNN, Look
from vlm_edge.vision import saliency, tiling
from vlm_edge.vision.raster import Picture, bands_of, size_of
from vlm_edge.vision.resize import source_box
from vlm_edge.vision.tiling import Tile

CELLS_PER_TILE = 16
MOST_CELLS = 1 << 20
"""An image with more cells than this gets larger ones: placing tiles takes about 100 bytes a cell."""
LEAST_CELL_PX = 4
"""In a smaller cell no stroke both rises and falls."""
FINE_SHARE = 0.75
"""Of an image's saliency: where tiles of a fine grid would show less than this, the family's own coarser grid shows more.

Measured: `python -m benchmarks.saliency_hits scales`, benchmarks/results/scale_hits.md.
"""
NOVELTY = "novelty"


def choose_tiles(
    pixels: Picture,
    geometry: TokenGeometry,
    look: Look,
    *,
    network: SaliencyRunner | None = None,
    whole: Floats | None = None,
) -> tuple[Tile, ...]:
    """The tiles that a Look gives an image; none where the global view already shows every pixel.

    network: for saliency by `cnn`.  whole: the global view's tokens [P, D], for `novelty`.
    Raises BadInput when a tile that the caller gave is larger than a view or reaches past the image, or the network's values
    cannot be used.
    """
    width, height = size_of(pixels)
    side = geometry.view_px
    if look.tiles is not None:
        return tuple(_given_tile(box, image_px=(width, height), side_px=side) for box in look.tiles)
    if look.max_tiles == 0 or (width <= side and height <= side):
        return ()
    if look.tiling == "grid":
        return tiling.grid_tiles(image_px=(width, height), tile_px=side, max_tiles=look.max_tiles)
    cell = cell_px_for(width, height, side)
    found = saliency_of(pixels, look, cell_px=cell, network=network, whole=whole, grid=geometry.grid)
    return tiling.salient_tiles(found, image_px=(width, height), tile_px=side, cell_px=cell, max_tiles=look.max_tiles)


def saliency_of(
    pixels: Picture,
    look: Look,
    *,
    cell_px: int,
    network: SaliencyRunner | None,
    whole: Floats | None,
    grid: tuple[int, int],
) -> Floats:
    """The map [rows, cols] over an image by a Look's source; by detail where what that needs is not given."""
    if look.saliency == CNN and network is not None:
        return saliency.cnn(pixels, network, cell_px=cell_px)
    if look.saliency == NOVELTY and whole is not None:
        return saliency.to_cells(saliency.novelty(whole, grid=grid), image_px=size_of(pixels), cell_px=cell_px)
    return saliency.detail_of_bands(bands_of(pixels), cell_px=cell_px)


def choose_cells(
    pixels: Picture,
    geometry: TokenGeometry,
    look: Look,
    *,
    network: SaliencyRunner | None = None,
    whole: Floats | None = None,
    whole_grid: tuple[int, int] | None = None,
) -> tuple[ImageLayout, tuple[Tile, ...]]:
    """The layout that shows the most salient tiles of the family's grid, and those tiles; the family's own where it has no grid.

    Of a geometry's scales the finest is taken at which the chosen tiles hold FINE_SHARE of what there is to see.
    whole: the overview's tokens [P, D], for `novelty`; whole_grid: their rows and columns, where those are not geometry.grid.
    """
    image_px = size_of(pixels)
    scales = geometry.scales(image_px)
    if not scales:
        return geometry.layout(image_px), ()
    cell = grid_cell_px(geometry, scales[0], image_px)
    found = saliency_of(pixels, look, cell_px=cell, network=network, whole=whole, grid=whole_grid or geometry.grid)
    choice = finest(choices(found, geometry, scales, image_px, cell_px=cell, max_tiles=look.max_tiles))
    layout = geometry.subset(image_px, choice.scale, choice.cells)
    return layout, choice.tiles if layout.cells or layout.views > 1 else ()


@dataclass(frozen=True)
class Choice:
    """The most salient tiles of one of a geometry's scales, and the share of all saliency that they hold."""

    scale: ImageLayout
    cells: tuple[Cell, ...]
    tiles: tuple[Tile, ...]
    share: float


def choices(
    found: Floats,
    geometry: TokenGeometry,
    scales: Sequence[ImageLayout],
    image_px: Size,
    *,
    cell_px: int,
    max_tiles: int,
) -> Iterator[Choice]:
    """Up to `max_tiles` tiles of each scale, by a map of saliency; a scale is looked at when it is asked for."""
    for scale in scales:
        boxes = cells_in_source(geometry, scale, image_px)
        chosen = tiling.salient_cells(found, boxes, cell_px=cell_px, max_tiles=max_tiles)
        tiles = tuple(Tile(*boxes[i], score) for i, score in zip(chosen.numbers, chosen.scores, strict=True))
        cells = tuple(divmod(number, scale.cols) for number in chosen.numbers)
        yield Choice(scale, cells, tiles, chosen.share)


def finest(made: Iterable[Choice], share: float = FINE_SHARE) -> Choice:
    """The first of one or more choices, the finest being first, that holds so much; the last one where none does."""
    for choice in made:
        if choice.share >= share:
            break
    return choice


def grid_cell_px(geometry: TokenGeometry, scale: ImageLayout, image_px: Size) -> int:
    """Cells of the map that tiles of a grid are chosen by, from the smallest tile of its finest scale."""
    boxes = cells_in_source(geometry, scale, image_px)
    side = max(1, min(min(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes if x0 < x1 and y0 < y1))
    return max(LEAST_CELL_PX, cell_px_for(*image_px, min(side, geometry.view_px)))


def cells_in_source(geometry: TokenGeometry, scale: ImageLayout, image_px: Size) -> list[Box]:
    """What each tile of a grid shows, in source px, row by row; without area where it is padding alone."""
    boxes = []
    for row in range(scale.rows):
        for col in range(scale.cols):
            x0, y0 = col * geometry.view_px, row * geometry.view_px
            x1, y1 = (min(at + geometry.view_px, end) for at, end in zip((x0, y0), scale.canvas_px, strict=True))
            boxes.append(source_box((x0, y0, x1, y1), scale.content, image_px))
    return boxes


def cell_px_for(width: int, height: int, side_px: int) -> int:
    """A part of the tile's side, so small that CELLS_PER_TILE make one, unless that came to more than MOST_CELLS."""
    cell = max(1, side_px // CELLS_PER_TILE)
    while -(-width // cell) * -(-height // cell) > MOST_CELLS and side_px % (2 * cell) == 0:
        cell *= 2
    return cell


def cell_count(width: int, height: int, side_px: int) -> int:
    """Cells of an image's saliency map."""
    cell = cell_px_for(width, height, side_px)
    return -(-width // cell) * -(-height // cell)


def _given_tile(box: Box, *, image_px: tuple[int, int], side_px: int) -> Tile:
    x0, y0, x1, y1 = box
    if x1 - x0 > side_px or y1 - y0 > side_px:
        raise BadInput(f"tile {box} is larger than this bundle's views", remedy=f"use {side_px} x {side_px} px at most")
    if x1 > image_px[0] or y1 > image_px[1]:
        size = f"{image_px[0]} x {image_px[1]} px"
        raise BadInput(f"tile {box} reaches past the image ({size})", remedy="give boxes in pixels of that image")
    return Tile(x0, y0, x1, y1, 0.0)

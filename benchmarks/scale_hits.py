"""Which scale of a family's own grid tiles should come from: lines that they show at a size that can be read.

Run as `python -m benchmarks.saliency_hits scales [--pages 150] [--seed N]`.

LLaVA-NeXT and InternVL cut an image into a grid of their own, which shrinks a large one; a finer grid has the image's own pixels
and more tiles than may be shown. The finer one is taken where its best tiles hold FINE_SHARE of the saliency. Here that share is
varied, from 0 (always the finer grid) to 1 (almost always the family's own), over pages whose lines the generator knows. A line is
hit when chosen tiles cover all of it and its letters are at least so many px high in them (`size_px` of the face times the scale).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from recipes.nano.fonts import check_fonts
from recipes.nano.held_out import FIRST_SEED, is_inside
from recipes.nano.pages import Style, draw_page
from vlm_edge.core.geometry import AnyResGeometry, TileGeometry, TokenGeometry
from vlm_edge.core.layout import Box
from vlm_edge.pipeline.answering.tile_choice import FINE_SHARE, Choice, choices, finest, grid_cell_px
from vlm_edge.pipeline.evaluating.paired import bootstrap, paired_difference
from vlm_edge.vision import saliency

SEED = FIRST_SEED + 600_000
SIDES_PX = (896, 1792)
ENLARGED = (1, 2, 3)
"""Text is drawn 12 to 16 px high. Of three pages one is drawn at a half of SIDES_PX, one at a third, and enlarged to them."""
COUNTS = (2, 4, 6)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
LEGIBLE_PX = (6, 9, 12)
PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
FAMILIES: dict[str, TokenGeometry] = {
    "LLaVA-NeXT": AnyResGeometry(view_px=336, grid=(24, 24), pinpoints=PINPOINTS),
    "InternVL": TileGeometry(view_px=448, grid=(16, 16), min_tiles=1, max_tiles=12),
}


def covered(box: Box, tiles: Sequence[Box]) -> bool:
    """Whether tiles, which do not overlap by more than rounding, hold every pixel of a box together."""
    x0, y0, x1, y1 = box
    seen = np.zeros((y1 - y0, x1 - x0), bool)
    for left, top, right, bottom in tiles:
        seen[max(0, top - y0) : max(0, bottom - y0), max(0, left - x0) : max(0, right - x0)] = True
    return bool(seen.all())


def shrunk(choice: Choice, width_px: int) -> float:
    """View px for each px of the image."""
    x0, _, x1, _ = choice.scale.content
    return (x1 - x0) / width_px


def page_hits(seed: int, index: int, counted: dict[tuple[str, int, int, float], list[bool]]) -> int:
    """Add each line of a page to every way of choosing; returns how many lines there are."""
    factor = ENLARGED[index % len(ENLARGED)]
    least_px, most_px = (side // factor for side in SIDES_PX)
    page = draw_page(np.random.default_rng((seed, index)), Style(min_side_px=least_px, max_side_px=most_px))
    size = page.width * factor, page.height * factor
    pixels = np.asarray(Image.fromarray(page.image).resize(size, Image.Resampling.LANCZOS))
    lines = [line for line in page.lines if is_inside(line, page)]
    for family, geometry in FAMILIES.items():
        scales = geometry.scales(size)
        cell = grid_cell_px(geometry, scales[0], size)
        found = saliency.detail_of_bands([pixels], cell_px=cell)
        for count in COUNTS:
            made = list(choices(found, geometry, scales, size, cell_px=cell, max_tiles=count))
            for share in SHARES:
                choice = finest(made, share)
                boxes = [tile.box for tile in choice.tiles]
                for line in lines:
                    x0, y0, x1, y1 = (factor * round(edge) for edge in line.box)
                    inside = covered((x0, y0, x1, y1), boxes)
                    letters_px = line.size_px * factor * shrunk(choice, size[0])
                    for least in LEGIBLE_PX:
                        counted.setdefault((family, count, least, share), []).append(inside and letters_px >= least)
    return len(lines)


def scales(pages: int, seed: int = SEED) -> None:
    """Print a table for each family, and where another share beats FINE_SHARE or loses."""
    check_fonts()
    counted: dict[tuple[str, int, int, float], list[bool]] = {}
    lengths = []
    for index in range(pages):
        lengths.append(page_hits(seed, index, counted))
        if (index + 1) % 10 == 0:
            print(f"{index + 1} pages", file=sys.stderr, flush=True)
    of_page = np.repeat(np.arange(pages), lengths)
    print(f"{sum(lengths)} lines of {pages} pages; differences to {FINE_SHARE} with their 95% intervals, in points")
    print("| family | tiles | letters from | " + " | ".join(f"{share:g}" for share in SHARES) + " |")
    print("| --- | ---: | ---: |" + " ---: |" * len(SHARES))
    for family in FAMILIES:
        ways = [(count, least) for count in COUNTS for least in LEGIBLE_PX]
        for count, least in ways:
            by_share = {share: counted[family, count, least, share] for share in SHARES}
            print(f"| {family} | {count} | {least} px | {_cells(by_share, of_page)} |")
        pooled = {share: [hit for way in ways for hit in counted[family, *way, share]] for share in SHARES}
        print(f"| {family} | all | all | {_cells(pooled, np.tile(of_page, len(ways)))} |")


def _cells(by_share: dict[float, list[bool]], of_page: NDArray[np.intp]) -> str:
    """Hit rates, that of FINE_SHARE with its own interval, the others with that of the difference to it."""
    cells, base = [], by_share[FINE_SHARE]
    for hits in by_share.values():
        if hits == base:
            low, high = bootstrap(np.array(hits, np.float64), of_page)
            cells.append(f"{np.mean(hits):.1%} ({100 * low:.1f}-{100 * high:.1f})")
        else:
            found = paired_difference(np.array(base), np.array(hits), of_page)
            points = f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
            cells.append(f"{np.mean(hits):.1%}, {points}")
    return " | ".join(cells)

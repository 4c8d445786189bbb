"""Draws held-out pages with questions, true answers, ideal tiles and strata, as `vlm-edge eval` reads them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from vlm_edge.core.bundle import atomic_write
from vlm_edge.core.layout import Box
from vlm_edge.core.load import to_plain
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.evaluating.rows import EvalRow
from vlm_edge.vision.tiling import Tile, reading_order

from .fonts import check_fonts, load_font
from .labels import TileBox
from .pages import MAX_PAGE_PX, MIN_PAGE_PX, VIEW_PX, Line, Page, Style, draw_page
from .questions import (
    TASKS,
    Question,
    ask_absent,
    ask_other,
    ask_shape,
    ask_value,
    box_text,
    phrase,
    visibility,
)

FIRST_SEED, LAST_SEED = 1_000_000, 1_999_999
"""Pages come from (seed, i): training draws from (0, ...) and samples.py from (2_000_000, ...)."""
MAX_TILES = 6
CAPACITY_PX2 = MAX_TILES * VIEW_PX * VIEW_PX
KEY_MARGIN_PX = VIEW_PX // 4
"""How far inside its first tile a line that needs two tiles begins, at most, so that the key stays whole."""


@dataclass(frozen=True)
class Made:
    """How a set was drawn, its questions by task, and the share of pages with more text than all tiles can cover.

    sides_px: the least and the most that a page's sides may be.
    """

    seed: int
    pages: int
    held_out_typefaces: bool
    questions: dict[str, int]
    crowded_share: float
    sides_px: tuple[int, int] = (MIN_PAGE_PX, MAX_PAGE_PX)
    pillow: str = PIL.__version__


def make(
    out: Path,
    *,
    pages: int,
    seed: int,
    per_task: int = 0,
    held_out_typefaces: bool = False,
    sides_px: tuple[int, int] = (MIN_PAGE_PX, MAX_PAGE_PX),
) -> Made:
    """Write OUT/pages/*.png, OUT/questions.jsonl and OUT/about.json.

    Pages past the first `pages` are drawn until every task has `per_task` questions, and ask only what is still short.
    Raises BadInput for a seed that might repeat pages that the model was made with, FontsMissing.
    """
    if not FIRST_SEED <= seed <= LAST_SEED:
        raise BadInput(f"--seed {seed} may repeat training pages", remedy=f"use {FIRST_SEED} to {LAST_SEED}")
    if not VIEW_PX < sides_px[0] <= sides_px[1]:
        raise BadInput(f"pages of {sides_px[0]} to {sides_px[1]} px cannot be drawn", remedy=f"use over {VIEW_PX} px")
    check_fonts()
    style = Style(held_out_typefaces=held_out_typefaces, min_side_px=sides_px[0], max_side_px=sides_px[1])
    (out / "pages").mkdir(parents=True, exist_ok=True)
    asked: Counter[str] = Counter(dict.fromkeys(TASKS, 0))
    rows: list[EvalRow] = []
    drawn = crowded = index = 0
    while index < pages or min(asked.values()) < per_task:
        tasks = {task for task in TASKS if index < pages or asked[task] < per_task}
        rng = np.random.default_rng((seed, index))
        page = draw_page(rng, style)
        name = f"pages/{index:04d}.png"
        found = [row for row in page_rows(rng, page, name) if row.task in tasks]
        index += 1
        if not found:
            continue
        Image.fromarray(page.image).save(out / name)
        drawn += 1
        crowded += is_crowded(page)
        asked.update(row.task for row in found)
        rows += found
        if drawn % 50 == 0:
            print(f"{drawn} pages", dict(asked), flush=True)
    made = Made(seed, drawn, held_out_typefaces, dict(asked), crowded / drawn, sides_px)
    with atomic_write(out / "questions.jsonl") as stream:
        stream.writelines(json.dumps(to_plain(row)).encode() + b"\n" for row in rows)
    with atomic_write(out / "about.json") as stream:
        stream.write(json.dumps(to_plain(made), indent=1).encode() + b"\n")
    return made


def page_rows(rng: np.random.Generator, page: Page, image: str) -> list[EvalRow]:
    """What is asked about a page: every readable line, every shape alone of its kind, and two of each other task."""
    lines = [line for line in page.lines if is_inside(line, page)]
    rows = [
        _row(image, ask_value(rng, line, visible=True), value_tiles(rng, page, line, lines), strata(page, line))
        for line in lines
    ]
    some = [lines[i] for i in rng.permutation(len(lines))[:3]]
    tiles = _in_order([box for line in some for box in oracle_tiles(page, line)])
    rows += [_row(image, question, tiles, strata(page)) for question in _other_questions(rng, page)]
    return rows


def _other_questions(rng: np.random.Generator, page: Page) -> list[Question]:
    """No two of them with the same task and target, or the same words."""
    kinds = Counter(shape.kind for shape in page.shapes)
    found = []
    for shape in page.shapes:
        if kinds[shape.kind] == 1:
            found.append(Question("color", phrase(rng, "color", shape.kind), shape.color, shape.kind))
            found.append(Question("where", phrase(rng, "where", shape.kind), box_text(shape, page), shape.kind))
    drawn = [ask_shape(rng, page, "count") for _ in range(4)] + [ask_absent(rng, page) for _ in range(4)]
    drawn += [ask_other(rng) for _ in range(4)]
    for task in ("count", "absent", "other"):
        own = {q.target or q.text: q for q in drawn if q is not None and q.task == task}
        found += list(own.values())[:2]
    return found


def _row(image: str, question: Question, tiles: tuple[Box, ...], tags: tuple[str, ...]) -> EvalRow:
    return EvalRow(image, question.text, question.answer, question.task, tiles, tags)


def oracle_tiles(page: Page, line: Line) -> list[Box]:
    """The tile with the line in its middle; for a line wider than a tile, two that abut and hold it well inside."""
    x0, y0, x1, y1 = line.box
    top = _clip((y0 + y1 - VIEW_PX) / 2, page.height - VIEW_PX)
    if line.width_px <= VIEW_PX:
        left = _clip((x0 + x1 - VIEW_PX) / 2, page.width - VIEW_PX)
        return [_box(left, top)]
    left = _clip(x0 - min((2 * VIEW_PX - line.width_px) / 2, KEY_MARGIN_PX), page.width - 2 * VIEW_PX)
    return [_box(left, top), _box(left + VIEW_PX, top)]


def value_tiles(rng: np.random.Generator, page: Page, line: Line, lines: list[Line]) -> tuple[Box, ...]:
    """The line's own tiles and those of up to two other lines that they do not show, in reading order."""
    boxes = oracle_tiles(page, line)
    others = [lines[i] for i in rng.permutation(len(lines)) if lines[i] is not line]
    added = 0
    for other in others:
        if added < 2 and visibility(other, [TileBox(box[0], box[1]) for box in boxes]) is False:
            boxes += oracle_tiles(page, other)
            added += 1
    return _in_order(boxes)


def _in_order(boxes: list[Box]) -> tuple[Box, ...]:
    return tuple(tile.box for tile in reading_order([Tile(*box, 0.0) for box in boxes]))


def _clip(value: float, largest: int) -> int:
    return int(min(max(round(value), 0), largest))


def _box(left: int, top: int) -> Box:
    return left, top, left + VIEW_PX, top + VIEW_PX


def is_inside(line: Line, page: Page) -> bool:
    """Whether a line can be read in full: some cards reach past the page's right edge."""
    x0, y0, x1, y1 = line.box
    return x0 >= 0 and y0 >= 0 and x1 <= page.width and y1 <= page.height


def is_crowded(page: Page) -> bool:
    """Whether the page holds more text than all tiles together can cover."""
    return page.text_px2 > CAPACITY_PX2


def strata(page: Page, line: Line | None = None) -> tuple[str, ...]:
    """What a row is counted under: the page's longer side and crowding; of a line its width, typeface and size."""
    side = max(page.width, page.height)
    size = "page <= 672 px" if side <= 672 else "page 673-1008 px" if side <= 1008 else "page > 1008 px"
    tags = [size, "crowded" if is_crowded(page) else "not crowded"]
    if line is not None:
        font = load_font(line.typeface, line.size_px)
        tags.append("long" if line.width_px > VIEW_PX else "one tile")
        tags.append("mono" if font.getlength("i") == font.getlength("w") else "proportional")
        tags.append(f"{line.size_px}px")
    return tuple(tags)

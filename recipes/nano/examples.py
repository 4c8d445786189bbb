"""What the decoder's training stages are shown: pages through a few views, with questions and dense labels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import IterableDataset

from vlm_edge.vision.tiling import Tile, reading_order, strips

from . import views
from .labels import CONTINUED, LINK_HEADS, NO_LABEL, TileBox, empty_labels, global_labels, stack_labels, tile_labels
from .pages import Page, Style, draw_page
from .questions import training_questions
from .sheets import sheet_tiles
from .tokenizer import ANSWER, EOS, QUESTION, build_tokenizer, encode_answer

QUESTIONS = 12
TOKENIZER = build_tokenizer()
_QUESTION, _ANSWER, _EOS = (TOKENIZER.token_to_id(name) for name in (QUESTION, ANSWER, EOS))


@dataclass(frozen=True)
class Asked:
    """A question's tokens up to where the answer begins, the answer's tokens, and the question's task."""

    prompt: list[int]
    answer: list[int]
    task: str


@dataclass(frozen=True)
class Example:
    """One page: its views uint8 [V, S, S, 3], those that are read row by row as one, labels and questions.

    strips: indices of views; the global view is alone in the first.  links: for every patch the key of its line and its
    place in the value where an earlier tile of its strip shows the line's beginning, int64 [V, P].  dense: what stage 0 learns,
    int16 [V, heads, GRID, GRID].
    """

    pixels: np.ndarray
    strips: tuple[tuple[int, ...], ...]
    links: dict[str, np.ndarray]
    dense: np.ndarray
    asked: list[Asked]


def choose_tiles(rng: np.random.Generator, page: Page) -> list[TileBox]:
    """As the runtime chooses, or around some lines with a distractor, or none at all."""
    mode = rng.random()
    if mode < 0.55:
        return views.salient(page, int(rng.choice([1, 2, 3, 4, 5, 6], p=[0.08, 0.1, 0.12, 0.15, 0.15, 0.4])))
    if mode > 0.94 or not page.lines:
        return []
    tiles: list[TileBox] = []
    for index in rng.permutation(len(page.lines)):
        line = page.lines[index]
        if len(tiles) > 4 or (len(tiles) > 1 and rng.random() < 0.3):
            break
        if line.box[2] <= page.width and not any(_holds(tile, line.box) for tile in tiles):
            tiles += views.around(rng, page, line)
    if rng.random() < 0.3:
        tiles.append(views.anywhere(rng, page))
    return [TileBox(t.x0, t.y0) for t in reading_order(_as_tiles(tiles[:6]))]


def _holds(tile: TileBox, box: tuple[float, float, float, float]) -> bool:
    return tile.x0 <= box[0] and box[2] <= tile.x1 and tile.y0 <= box[1] and box[3] <= tile.y1


def _as_tiles(boxes: list[TileBox]) -> list[Tile]:
    return [Tile(box.x0, box.y0, box.x1, box.y1, 0.0) for box in boxes]


def page_style(stage: int, progress: float) -> Style:
    """What a stage's pages hold at a progress of 0 to 1.

    Stage 1 goes from one card without long lines to everything; stage 4 from one long line to cards of which half are long,
    and stage 5 from there to what is usual.
    """
    if stage == 1:
        ease = min(1.0, progress / 0.25)
        return Style(max_cards=1 + int(5 * ease), long_lines=0.18 if ease > 0.6 else 0.0)
    if stage == 2:
        return Style()
    if stage == 5:
        return Style(long_lines=0.5 if progress < 0.5 else 0.35)
    ease = min(1.0, max(0.0, progress - 0.3) / 0.2)
    return Style(max_cards=1 + int(5 * ease), max_lines=1 + int(3 * ease), long_lines=1.0 - 0.5 * ease)


def draw_example(rng: np.random.Generator, style: Style) -> Example:
    """A page of that style, tiles on it, and questions."""
    page = draw_page(rng, style)
    tiles = choose_tiles(rng, page)
    pixels = [views.global_view(page)] + [views.worn(rng, views.cut(page, tile)) for tile in tiles]
    asked = [
        Asked([_QUESTION, *TOKENIZER.encode(q.text, add_special_tokens=False).ids, _ANSWER],
              [*encode_answer(TOKENIZER, q.answer), _EOS], q.task)
        for q in training_questions(rng, page, tiles, QUESTIONS)
    ]  # fmt: skip
    alone = [tile_labels(page.lines, tile) for tile in tiles]
    joined = strips(_as_tiles(tiles))
    linked = [empty_labels(), *(_links(page, tiles[i], tiles[s[0]], alone[i]) for s in joined for i in s)]
    links = {name: np.stack([labels[name].ravel() for labels in linked]) for name in LINK_HEADS}
    in_rows = ((0,), *(tuple(1 + i for i in strip) for strip in joined))
    return Example(np.stack(pixels), in_rows, links, stack_labels([global_labels(page), *alone]), asked)


def _links(page: Page, tile: TileBox, first: TileBox, alone: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Labels of the patches of a tile whose line began further left in its strip.

    first: the strip's first tile.  alone: what the tile's own labels are.
    """
    joined = tile_labels(page.lines, tile, from_x=first.x0)
    continued = (alone["key"] == CONTINUED) & (joined["key"] != CONTINUED)
    return {name: np.where(continued, joined[name], NO_LABEL) for name in LINK_HEADS}


@dataclass(frozen=True)
class Batch:
    """Pages with questions, and tiles of sheets that only the tower is asked about.

    sheets, sheet_labels: uint8 [N, S, S, 3] and int16 [N, heads, GRID, GRID].
    """

    examples: list[Example]
    sheets: np.ndarray
    sheet_labels: np.ndarray

    def pixels(self) -> np.ndarray:
        """All views uint8 [V, S, S, 3], those of the sheets last."""
        return np.concatenate([*(example.pixels for example in self.examples), self.sheets])

    def dense_labels(self) -> np.ndarray:
        """int16 [V, heads, GRID, GRID], in the order of `pixels`."""
        return np.concatenate([*(example.dense for example in self.examples), self.sheet_labels])


class Batches(IterableDataset):
    """Batch i of stage s depends on (seed, s, i) and the total number of steps only."""

    def __init__(self, seed: int, stage: int, start: int, *, steps: int, pages: int, sheets: int) -> None:
        self.seed, self.stage, self.start, self.steps, self.pages, self.sheets = (
            seed,
            stage,
            start,
            steps,
            pages,
            sheets,
        )

    def __iter__(self) -> Iterator[Batch]:
        for index in range(self.start, self.steps):
            rng = np.random.default_rng((self.seed, self.stage, index))
            style = page_style(self.stage, index / self.steps)
            drawn = (draw_example(rng, style) for _ in itertools.count())
            if style.max_lines == 1:
                drawn = (example for example in drawn if (example.links["key"] != NO_LABEL).any())
            examples = list(itertools.islice(drawn, self.pages))
            pixels, labels = sheet_tiles(rng, self.sheets)
            yield Batch(examples, pixels, labels)

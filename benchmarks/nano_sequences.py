"""What the nano model's decoder reads when `run` asks it about a page: global view, tiles, question, and the true answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from recipes.nano.held_out import is_inside, oracle_tiles, page_rows
from recipes.nano.labels import TileBox
from recipes.nano.pages import VIEW_PX, Page, Style, draw_page
from recipes.nano.questions import Question, ask_value, visibility
from recipes.nano.tokenizer import encode_answer
from vlm_edge.core.bundle import open_bundle
from vlm_edge.core.checkpoint import open_checkpoint
from vlm_edge.models.llava.components import PARTS, VisionAndProjector
from vlm_edge.models.llava.prompt import LlavaPrompt
from vlm_edge.models.weights import load_parts
from vlm_edge.pipeline.embedded import NANO
from vlm_edge.quant.sequences import CalibrationSequence, Placement
from vlm_edge.vision.preprocess import global_view
from vlm_edge.vision.tiling import Tile, reading_order

CHECKPOINT = Path(__file__).parents[1] / "recipes/nano/checkpoint"
CALIBRATION_SEED, HELD_OUT_SEED = 3_000_000, 1_500_000
"""Neither training (0), nor the shipped pages (2_000_000), nor the published evaluation (1_000_000) draws from these."""
VALUE = "value"
LINES = 3
"""Lines of a page whose tiles are shown."""


@dataclass(frozen=True)
class Asked:
    """One question.

    prefix: float32 [P, D], start token and visual tokens, the same tensor for all questions about the same views of a page; of a
    question without an image the start token alone.  own: float32 [L - P, D], question and answer.  answer: its tokens, which the
    last positions predict.
    """

    prefix: torch.Tensor
    own: torch.Tensor
    answer: tuple[int, ...]
    task: str
    page: int

    @property
    def hidden(self) -> torch.Tensor:
        """The whole sequence [L, D]."""
        return torch.cat([self.prefix, self.own])

    def sequence(self) -> CalibrationSequence:
        """For the quantizer."""
        length = len(self.prefix) + len(self.own)
        return CalibrationSequence(self.hidden, Placement(length, judged_from=len(self.prefix) - 1))


class Eyes:
    """The nano checkpoint's tower and prompt."""

    def __init__(self) -> None:
        self.prompt = LlavaPrompt(open_bundle(NANO))
        self.tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
        self.tower = VisionAndProjector(load_parts(open_checkpoint(CHECKPOINT), PARTS, dtype=torch.float32))
        table = load_parts(open_checkpoint(CHECKPOINT), ("model.language_model.embed_tokens",), dtype=torch.float32)
        self.table = table.model.language_model.embed_tokens.weight.detach()

    def features(self, views: list[np.ndarray]) -> list[np.ndarray]:
        """Of uint8 views."""
        with torch.no_grad():
            return list(self.tower(torch.from_numpy(self.prompt.views.pixels(views))).numpy())

    def seen(self, image: np.ndarray, boxes: Sequence[Any], known: dict[Any, np.ndarray]) -> torch.Tensor:
        """Start token, global view and tiles of a page [P, D]; known: features of views that were seen before."""
        new = [box for box in (None, *boxes) if box not in known]
        views = [global_view(image, VIEW_PX) if box is None else image[box[1] : box[3], box[0] : box[2]] for box in new]
        if new:
            known.update(zip(new, self.features(views), strict=True))
        (run,) = self.prompt.runs([known[box] for box in (None, *boxes)], self._layout(1 + len(boxes)))
        return torch.cat([self.start(), torch.from_numpy(run)])

    def start(self) -> torch.Tensor:
        """What stands before the image [1, D]."""
        tokens = self.prompt.tokens("?", [self._layout(1)])
        return self.table[list(tokens[: tokens.index(self.prompt.image_id)])]

    def text(self, question: str, answer: str) -> tuple[torch.Tensor, tuple[int, ...]]:
        """Embeddings of what follows the image, the answer but for its last token included; and the answer's tokens."""
        tokens = self.prompt.tokens(question, [self._layout(1)])
        asked = tokens[tokens.index(self.prompt.image_id) + 1 :]
        ids = (*encode_answer(self.tokenizer, answer), min(self.prompt.text.eos_ids))
        return self.table[[*asked, *ids[:-1]]], ids

    def _layout(self, views: int) -> Any:
        return replace(self.prompt.views.geometry.layout((VIEW_PX, VIEW_PX)), views=views)


def questions(count: int, seed: int, *, for_each_page: int = 12, images: bool = True) -> Iterator[Asked]:
    """Questions about pages drawn from a seed, at most so many for each page, all about the same tiles of it.

    images: False leaves the pages out.
    """
    eyes, made, index = Eyes(), 0, 0
    start = eyes.start()
    while made < count:
        rng = np.random.default_rng((seed, index))
        page = draw_page(rng, Style())
        tiles = _tiles(rng, page)
        asked = _asked(rng, page, tiles)
        prefix = eyes.seen(page.image, [tile.box for tile in tiles], {}) if images else start
        for i in rng.permutation(len(asked))[: min(for_each_page, count - made)]:
            own, answer = eyes.text(asked[i].text, asked[i].answer)
            yield Asked(prefix, own, answer, asked[i].task, index)
            made += 1
        index += 1


def _tiles(rng: np.random.Generator, page: Page) -> list[Tile]:
    """Those of a few lines, in reading order."""
    lines = [line for line in page.lines if is_inside(line, page)]
    boxes: list[Any] = []
    for line in [lines[i] for i in rng.permutation(len(lines))[:LINES]]:
        if visibility(line, _at(boxes)) is False:
            boxes += oracle_tiles(page, line)
    return reading_order([Tile(*box, 0.0) for box in boxes])


def _asked(rng: np.random.Generator, page: Page, tiles: Sequence[Tile]) -> list[Question]:
    """Every line that the tiles show in full, and what page_rows asks about shapes and what is not there."""
    shown = _at([tile.box for tile in tiles])
    lines = [line for line in page.lines if is_inside(line, page) and visibility(line, shown)]
    others = [row for row in page_rows(rng, page, "") if row.task != VALUE]
    return [
        *(ask_value(rng, line, visible=True) for line in lines),
        *(Question(row.task, row.question, row.answer) for row in others),
    ]


def _at(boxes: Sequence[Any]) -> list[TileBox]:
    return [TileBox(box[0], box[1]) for box in boxes]

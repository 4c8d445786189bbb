"""What the nano model's decoder reads when `run` asks it about a page: global view, tiles, question, and the true answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from recipes.nano.held_out import page_rows
from recipes.nano.pages import VIEW_PX, Style, draw_page
from recipes.nano.tokenizer import encode_answer
from vlm_edge.core.bundle import open_bundle
from vlm_edge.core.checkpoint import open_checkpoint
from vlm_edge.models.llava.components import PARTS, VisionAndProjector
from vlm_edge.models.llava.prompt import LlavaPrompt
from vlm_edge.models.weights import load_parts
from vlm_edge.pipeline.run import NANO
from vlm_edge.quant.sequences import CalibrationSequence, Placement
from vlm_edge.vision.preprocess import global_view

CHECKPOINT = Path(__file__).parents[1] / "recipes/nano/checkpoint"
CALIBRATION_SEED, HELD_OUT_SEED = 3_000_000, 1_500_000
"""Neither training (0), nor the shipped pages (2_000_000), nor the published evaluation (1_000_000) draws from these."""


@dataclass(frozen=True)
class Asked:
    """hidden: float32 [L, D] with the answer behind the prompt; answer: its tokens, which the last positions predict."""

    hidden: torch.Tensor
    answer: tuple[int, ...]
    task: str
    visual: int

    def sequence(self) -> CalibrationSequence:
        """For the quantizer."""
        return CalibrationSequence(self.hidden, Placement(len(self.hidden), judged_from=self.visual))


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
            return list(self.tower(torch.from_numpy(self.prompt.pixels(views))).numpy())

    def asked(self, image: np.ndarray, row: Any, known: dict[Any, np.ndarray]) -> Asked:
        """One question about a page; known: features of views that were seen before."""
        boxes = [None, *(row.tiles or ())]
        new = [box for box in boxes if box not in known]
        views = [global_view(image, VIEW_PX) if box is None else image[box[1] : box[3], box[0] : box[2]] for box in new]
        if new:
            known.update(zip(new, self.features(views), strict=True))
        tokens = self.prompt.tokens(row.question, images=1)
        rows = self.prompt.splice(tokens, [[known[box] for box in boxes]])
        answer = (*encode_answer(self.tokenizer, row.answer), min(self.prompt.text.eos_ids))
        hidden = torch.cat([torch.from_numpy(rows), self.table[list(answer[:-1])]])
        visual = len(rows) - (len(tokens) - tokens.index(self.prompt.image_id))
        return Asked(hidden, answer, row.task, visual)


def questions(count: int, seed: int, *, for_each_page: int = 8) -> Iterator[Asked]:
    """Questions about pages drawn from a seed, at most so many for each page."""
    eyes, made, index = Eyes(), 0, 0
    while made < count:
        rng = np.random.default_rng((seed, index))
        index += 1
        page = draw_page(rng, Style())
        rows = page_rows(rng, page, "")
        known: dict[Any, np.ndarray] = {}
        for i in rng.permutation(len(rows))[: min(for_each_page, count - made)]:
            yield eyes.asked(page.image, rows[i], known)
            made += 1

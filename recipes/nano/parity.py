"""Greedy tokens of the shipped checkpoint in transformers against those of a bundle in the runtime.

    python -m recipes.nano.parity recipes/nano/checkpoint FP32_BUNDLE --data HELD_OUT/questions.jsonl --questions 200

FP32_BUNDLE: python -m recipes.nano.checkpoint bundle recipes/nano/checkpoint FP32_BUNDLE --llm fp32
HELD_OUT: python -m recipes.nano.evaluate make HELD_OUT
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vlm_edge import AskOptions, Pipeline
from vlm_edge.pipeline.evaluating.rows import read_rows
from vlm_edge.vision.preprocess import crop, global_view
from vlm_edge.vision.sources import load_image
from vlm_edge.vision.tiling import Tile

from .tokenizer import ANSWER, BOS, GLOBAL, IMAGE, QUESTION, TILE

VIEW_PX, GRID = 112, 8
TOKENS = GRID * GRID


@dataclass(frozen=True)
class Case:
    """One question in both engines."""

    image: str
    question: str
    runtime: str
    transformers: str

    @property
    def equal(self) -> bool:
        return self.runtime == self.transformers


def reference_answer(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, pixels: np.ndarray,
    boxes: list[tuple[int, int, int, int]], question: str, new_tokens: int, *, join_rows: bool,
) -> str:  # fmt: skip
    """transformers' own features and greedy generation; only the crops and the global view's scaling are the runtime's.

    pixels: the page, uint8 [H, W, 3].  boxes: its tiles in source pixels.
    """
    views = [global_view(pixels, VIEW_PX)] + [crop(pixels, Tile(*box, 0.0), VIEW_PX) for box in boxes]
    batch = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        features = model.get_image_features(batch).pooler_output
    ids, placed = [BOS, GLOBAL, *[IMAGE] * TOKENS], [*features[0]]
    for strip in neighbours(boxes) if join_rows else [[i] for i in range(len(boxes))]:
        ids += [TILE] * len(strip) + [IMAGE] * TOKENS * len(strip)
        for row in range(GRID):
            for i in strip:
                placed += [*features[1 + i][row * GRID : (row + 1) * GRID]]
    inputs = tokenizer.convert_tokens_to_ids([*ids, QUESTION]) + tokenizer.encode(question, add_special_tokens=False)
    inputs.append(tokenizer.convert_tokens_to_ids(ANSWER))
    tokens = torch.tensor([inputs])
    with torch.no_grad():
        embeds = model.get_input_embeddings()(tokens)
        embeds[tokens == model.config.image_token_index] = torch.stack(placed)
        mask = torch.ones_like(tokens)
        out = model.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False)
    return tokenizer.decode(out[0], skip_special_tokens=True)


def neighbours(boxes: list[tuple[int, int, int, int]]) -> list[list[int]]:
    """Indices of boxes in their order, each one that begins where the last one ends, at equal height, beside it."""
    groups: list[list[int]] = []
    for i, (x0, y0, _, y1) in enumerate(boxes):
        if groups and boxes[groups[-1][-1]][1:] == (y0, x0, y1):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def of_pages(folder: Path) -> Iterator[tuple[Path, str]]:
    """Image and question of every page that `samples` drew."""
    for page in sorted(folder.glob("*.png")):
        for entry in json.loads(page.with_suffix(".json").read_text())["questions"]:
            yield page, entry["question"]


def of_data(path: Path) -> Iterator[tuple[Path, str]]:
    """Image and question of every row that `evaluate make` drew."""
    return ((path.parent / row.image, row.question) for row in read_rows(path))


def cases(checkpoint: Path, bundle: Path, asked: Iterable[tuple[Path, str]], new_tokens: int = 32) -> Iterator[Case]:
    """Every question put to both."""
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    pipeline = Pipeline.load(bundle)
    options = AskOptions(reduce="none", max_new_tokens=new_tokens)
    join_rows = bool(pipeline.bundle.manifest.recipe.get("join_rows"))
    for page, question in asked:
        answer = pipeline.ask(page, question, options)
        boxes = [tile.box for tile in answer.tiles]
        pixels = load_image(page).pixels
        expected = reference_answer(model, tokenizer, pixels, boxes, question, new_tokens, join_rows=join_rows)
        yield Case(page.name, question, answer.text, expected)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path, help="of the same weights, with a decoder that was not rounded")
    parser.add_argument("--data", type=Path, help="questions.jsonl of `evaluate make`; default: calibration/pages")
    parser.add_argument("--questions", type=int, default=200)
    a = parser.parse_args()
    asked = of_data(a.data) if a.data else of_pages(Path("calibration/pages"))
    results = list(cases(a.checkpoint, a.bundle, itertools.islice(asked, a.questions)))
    for case in results:
        if not case.equal:
            print(f"differs: {case}")
    print(f"{sum(case.equal for case in results)} of {len(results)} answers are equal")

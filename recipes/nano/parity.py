"""Greedy tokens of the shipped checkpoint in transformers against those of a bundle in the runtime.

    python -m recipes.nano.parity recipes/nano/checkpoint FP32_BUNDLE --pages DIR --questions 200

FP32_BUNDLE: python -m recipes.nano.checkpoint bundle recipes/nano/checkpoint FP32_BUNDLE --llm fp32
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vlm_edge import AskOptions, Pipeline
from vlm_edge.vision.preprocess import crop, global_view
from vlm_edge.vision.sources import load_image

from .tokenizer import ANSWER, BOS, GLOBAL, IMAGE, QUESTION, TILE

VIEW_PX, TOKENS = 112, 64


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
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, views: list[np.ndarray], question: str,
    new_tokens: int,
) -> str:  # fmt: skip
    """transformers' own greedy generation from the same views; nothing of the runtime takes part."""
    pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 127.5 - 1
    ids = [BOS]
    for i in range(len(views)):
        ids += [GLOBAL if i == 0 else TILE] + [IMAGE] * TOKENS
    ids = tokenizer.convert_tokens_to_ids([*ids, QUESTION])
    ids += tokenizer.encode(question, add_special_tokens=False)
    ids.append(tokenizer.convert_tokens_to_ids(ANSWER))
    inputs = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            pixel_values=pixels,
            max_new_tokens=new_tokens,
            do_sample=False,
        )
    return tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)


def cases(checkpoint: Path, bundle: Path, pages: list[Path], limit: int, new_tokens: int = 32) -> Iterator[Case]:
    """Ask what each page's JSON file asks, up to `limit` questions, without reduction of tokens."""
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    pipeline = Pipeline.load(bundle)
    options = AskOptions(reduce="none", max_new_tokens=new_tokens)
    asked = 0
    for page in pages:
        pixels = load_image(page).pixels
        for entry in json.loads(page.with_suffix(".json").read_text())["questions"]:
            if asked == limit:
                return
            asked += 1
            answer = pipeline.ask(page, entry["question"], options)
            views = [global_view(pixels, VIEW_PX)] + [crop(pixels, tile, VIEW_PX) for tile in answer.tiles]
            expected = reference_answer(model, tokenizer, views, entry["question"], new_tokens)
            yield Case(page.name, entry["question"], answer.text, expected)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--pages", type=Path, default=Path("calibration/pages"))
    parser.add_argument("--questions", type=int, default=200)
    a = parser.parse_args()
    results = list(cases(a.checkpoint, a.bundle, sorted(a.pages.glob("*.png")), a.questions))
    for case in results:
        if not case.equal:
            print(f"differs: {case}")
    print(f"{sum(case.equal for case in results)} of {len(results)} answers are equal")

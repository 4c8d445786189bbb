"""Whether reduced visual tokens keep the positions that they had among all tokens, or are numbered anew.

    python -m benchmarks.token_positions HELD_OUT OUT.json

HELD_OUT: as `python -m recipes.nano.evaluate make` draws it.  The nano checkpoint's decoder in transformers, fp32, since the
shipped graph counts positions itself; views, tiles and reductions are the runtime's. Kept: a token stands where its first
member stood in the prompt with every token, and the question where it stood there. Renumbered: all positions follow each other.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.every_tile import Reader
from vlm_edge.core.bundle import atomic_write, open_bundle
from vlm_edge.pipeline.answering.options import Look
from vlm_edge.pipeline.answering.views import choose_tiles, prompt_views
from vlm_edge.pipeline.embedded import NANO
from vlm_edge.pipeline.evaluating.rows import EvalRow, read_rows
from vlm_edge.tokens.positions import DROPPED, TokenSet, keep_all
from vlm_edge.tokens.reduce import reduce_tokens
from vlm_edge.vision.preprocess import crop, global_view
from vlm_edge.vision.sources import load_image
from vlm_edge.vision.tiling import Tile

CHECKPOINT = Path(__file__).parents[1] / "recipes/nano/checkpoint"
TILES, NEW_TOKENS = 6, 32
REDUCTIONS: tuple[tuple[str, dict[str, float]], ...] = (
    ("none", {}),
    ("threshold", {"threshold": 0.9}),
    ("tome", {"keep": 0.5}),
    ("divprune", {"keep": 0.5}),
    ("divprune", {"keep": 0.25}),
)


@dataclass(frozen=True)
class Run:
    """Visual tokens of a page as they enter the prompt: embeddings [T, D], markers included, and where each stood among all."""

    embeds: NDArray[np.float32]
    kept: NDArray[np.int64]
    full: int


def placed(
    sets: Sequence[TokenSet], tiles: Sequence[Tile], grid: tuple[int, int], tokens_per_view: int
) -> tuple[NDArray[np.int64], int]:
    """Positions [T] of the tokens and markers in the run of every token, and that run's length.

    A view's marker comes before its tokens; views whose tokens are read row by row with the last of their strip have none of
    their own, as in the prompt.
    """
    everything = keep_all(_numbered(len(sets), tokens_per_view), grid=grid)
    position, where, markers = 0, {}, []
    for view in prompt_views(everything, tiles, grid, join_rows=True):
        markers.append(position)
        position += 1
        for number in view[:, 0]:
            where[int(number)] = position
            position += 1
    first = [replace(one, features=_first_members(one, view, tokens_per_view)) for view, one in enumerate(sets)]
    found: list[int] = []
    for marker, view in zip(markers, prompt_views(first, tiles, grid, join_rows=True), strict=True):
        found += [marker, *(where[int(number)] for number in view[:, 0])]
    return np.array(found, np.int64), position


def _numbered(views: int, tokens: int) -> NDArray[np.float32]:
    """Features [V, P, 1] that say which token each one is; exact in float32 below 2**24."""
    return np.arange(views * tokens, dtype=np.float32).reshape(views, tokens, 1)


def _first_members(one: TokenSet, view: int, tokens: int) -> NDArray[np.float32]:
    numbers, first = np.unique(one.members, return_index=True)
    return (view * tokens + first[numbers != DROPPED]).astype(np.float32)[:, None]


def run_of(reader: Reader, pixels: NDArray[np.uint8], reduction: str, numbers: dict[str, float]) -> Run:
    """The six salient tiles of a page, reduced."""
    size, geometry = (pixels.shape[1], pixels.shape[0]), reader.geometry
    tiles = choose_tiles(pixels, geometry, Look("auto", TILES, "none", 1.0, 1.0, 0, saliency="detail"))
    side = geometry.view_px
    features = reader.features([global_view(pixels, side), *(crop(pixels, tile, side) for tile in tiles)])
    sets = reduce_tokens(reduction, features, grid=geometry.grid, **numbers)
    kept, full = placed(sets, tiles, geometry.grid, features.shape[1])
    layout = replace(geometry.layout(size), views=len(features))
    (embeds,) = reader.prompt.runs(prompt_views(sets, tiles, geometry.grid, join_rows=True), layout)
    return Run(embeds, kept, full)


class Decoder:
    """The checkpoint's decoder, with positions of the caller's choice."""

    def __init__(self, reader: Reader) -> None:
        from transformers import LlavaForConditionalGeneration

        model = LlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
        self._layers, self._head = model.model.language_model, model.lm_head
        self._embed = model.get_input_embeddings()
        self._prompt = reader.prompt

    @torch.no_grad()
    def answers(self, run: Run, asked: Sequence[str], *, keep: bool) -> list[str]:
        """Greedy answers to questions about one page, all at once: shorter prompts are padded in front."""
        layout = self._prompt.views.geometry.layout((1, 1))
        rows, places = [], []
        for question in asked:
            ids = self._prompt.tokens(question, [layout])
            begin = ids.index(self._prompt.image_id)
            parts = (ids[:begin], ids[begin + 1 :])
            before, after = (self._embed(torch.tensor(part, dtype=torch.long)) for part in parts)
            rows.append(torch.cat([before, torch.from_numpy(run.embeds), after]))
            visual = run.kept if keep else np.arange(len(run.embeds))
            end = begin + (run.full if keep else len(run.embeds))
            places.append(
                torch.from_numpy(np.concatenate([np.arange(begin), begin + visual, end + np.arange(len(after))]))
            )
        longest = max(map(len, rows))
        embeds = torch.stack([torch.nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        positions = torch.stack([torch.nn.functional.pad(place, (longest - len(place), 0)) for place in places])
        mask = torch.stack([(torch.arange(longest) >= longest - len(row)).long() for row in rows])
        return self._decoded(embeds, positions, mask)

    def _decoded(self, embeds: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor) -> list[str]:
        ends, cache = set(self._prompt.text.eos_ids), None
        tokens: list[list[int]] = [[] for _ in embeds]
        open_rows = set(range(len(embeds)))
        for _ in range(NEW_TOKENS):
            out = self._layers(
                inputs_embeds=embeds, position_ids=positions, attention_mask=mask, cache=cache, use_cache=True
            )
            cache = out.cache
            chosen = self._head(out.last_hidden_state[:, -1]).argmax(-1)
            for row in sorted(open_rows):
                if int(chosen[row]) in ends:
                    open_rows.discard(row)
                else:
                    tokens[row].append(int(chosen[row]))
            if not open_rows:
                break
            embeds, positions = self._embed(chosen)[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        return [self._prompt.text.decode(row) for row in tokens]


def measure(held_out: Path, out: Path, limit: int | None = None) -> None:
    """By reduction: tokens, and by numbering which rows were right; `out` is written anew after each page."""
    torch.set_num_threads(1)
    rows = [row for row in read_rows(held_out / "questions.jsonl", limit=limit) if row.task == "value"]
    reader = Reader(open_bundle(NANO))
    decoder = Decoder(reader)
    results: dict[str, Any] = {}
    images: list[str] = []
    for image, own in _by_page(rows):
        pixels = load_image(held_out / image).pixels
        for reduction, numbers in REDUCTIONS:
            run = run_of(reader, pixels, reduction, numbers)
            name = " ".join([reduction, *(f"{value:g}" for value in numbers.values())])
            found = results.setdefault(name, {"tokens": [], "kept": [], "renumbered": []})
            found["tokens"] += [len(run.embeds)] * len(own)
            for way, keep in (("kept", True), ("renumbered", False)):
                answers = decoder.answers(run, [row.question for row in own], keep=keep)
                found[way] += [answer.strip() == row.answer for answer, row in zip(answers, own, strict=True)]
        images += [image] * len(own)
        with atomic_write(out) as stream:
            stream.write(json.dumps({"rows": len(images), "images": images, "reductions": results}).encode() + b"\n")
        rights = {name: (sum(found["kept"]), sum(found["renumbered"])) for name, found in results.items()}
        print(image, len(images), rights, flush=True)


def _by_page(rows: Sequence[EvalRow]) -> Iterator[tuple[str, list[EvalRow]]]:
    for image in dict.fromkeys(row.image for row in rows):
        yield image, [row for row in rows if row.image == image]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, help="only the first N rows of questions.jsonl")
    arguments = parser.parse_args()
    measure(arguments.held_out, arguments.out, arguments.limit)

"""What reading every tile of a page comes to with the nano model, which takes six tiles in a sequence: the baselines of its curves.

    python -m benchmarks.every_tile HELD_OUT OUT.jsonl

HELD_OUT: as `python -m recipes.nano.evaluate make` draws it.  Two ways, over the same value questions:

single: the global view and one cell of a grid without gaps, for every cell.
longest: the global view and a block of six tiles, two side by side in three rows, as many as the model was trained on, for
    every such block of a page; blocks overlap by a tile sideways, and come again half a tile further down, so that every line
    within a tile's width is whole in a row of one of them. (Six tiles in one row are read as one strip, which training never had.)

A question is put to all of them. Two scores: the answer that was given most often, `not visible` aside; and whether any of the
answers was right, which nobody can know without the truth: an upper bound. One line a page and way; a second run goes on.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipes.nano.vocabulary import NOT_VISIBLE, UNSUPPORTED
from vlm_edge.core import discover
from vlm_edge.core.bundle import Bundle, open_bundle
from vlm_edge.models.llava.prompt import LlavaPrompt
from vlm_edge.pipeline.answering.encoders import open_encoder
from vlm_edge.pipeline.answering.views import prompt_views
from vlm_edge.pipeline.embedded import NANO
from vlm_edge.pipeline.evaluating.rows import EvalRow, read_rows
from vlm_edge.tokens.positions import keep_all
from vlm_edge.vision.preprocess import crop, global_view
from vlm_edge.vision.sources import load_image
from vlm_edge.vision.tiling import Tile, grid_tiles

WAYS = ("single", "longest")
ACROSS, DOWN = 2, 3
"""Tiles of a sequence: six, as in training, which showed two that abut side by side where a line needed them."""
NEW_TOKENS = 64
_BATCH = 16
_SILENT = frozenset({NOT_VISIBLE, UNSUPPORTED, ""})


@dataclass(frozen=True)
class PageAnswers:
    """Of one page: visual tokens of every tile and one global view, sequences, and by question how often each answer was given.

    Answers stand in the order in which they were first given.
    """

    way: str
    image: str
    tokens: int
    sequences: int
    answers: tuple[tuple[str, dict[str, int]], ...]


class Reader:
    """The nano model's encoder, prompt and decoder, without a pipeline's own choice of views."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        spec, limits = bundle.manifest.model, bundle.manifest.limits
        self.prompt = LlavaPrompt(bundle)
        self.geometry = self.prompt.views.geometry
        self._encoder = open_encoder(bundle, "cpu", threads)
        self._engine = discover.backend("onnx").engine(
            bundle.path("llm.graph", target="cpu"), spec.text, "cpu", threads, limits.max_model_len
        )

    def features(self, views: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """[V, P, D], a few views at a time."""
        batches = [views[i : i + _BATCH] for i in range(0, len(views), _BATCH)]
        return np.concatenate([self._encoder.encode(self.prompt.views.pixels(batch)) for batch in batches])

    def answers(
        self, features: NDArray[np.float32], tiles: Sequence[Tile], image_px: tuple[int, int], asked: Sequence[str]
    ) -> list[str]:
        """Greedy answers to questions about one sequence: features of the global view and of tiles [1 + N, P, D]."""
        sets = keep_all(features, grid=self.geometry.grid)
        layout = replace(self.geometry.layout(image_px), views=len(features))
        (run,) = self.prompt.runs(prompt_views(sets, tiles, self.geometry.grid, join_rows=True), layout)
        text, image_id = self.prompt.text, self.prompt.image_id
        found, prefix = [], 0
        for question in asked:
            ids = self.prompt.tokens(question, [layout])
            begin = ids.index(image_id)
            if not prefix:
                self._engine.rewind(0)
                self._engine.forward(np.concatenate([text.embed(ids[:begin]), run]))
                prefix = begin + len(run)
            self._engine.rewind(prefix)
            found.append(self._decode(text.embed(ids[begin + 1 :])))
        return found

    def _decode(self, embeds: NDArray[np.float32]) -> str:
        text, tokens = self.prompt.text, list[int]()
        logits = self._engine.forward(embeds)
        while (token := int(np.argmax(logits))) not in text.eos_ids and len(tokens) < NEW_TOKENS:
            tokens.append(token)
            logits = self._engine.forward(text.embed([token]))
        return text.decode(tokens)


def blocks(image_px: tuple[int, int], side_px: int) -> Iterator[tuple[Tile, ...]]:
    """Two tiles side by side in three rows (fewer on a small page), in steps of a tile, and all again half a tile further down."""
    width, height = image_px
    across, down = max(1, min(ACROSS, width // side_px)), max(1, min(DOWN, height // side_px))
    tall, half = down * side_px, side_px // 2
    lower = {half + y for y in _starts(height - 2 * half, tall, tall)} if height >= tall + 2 * half else set()
    for y in sorted({*_starts(height, tall, tall), *lower}):
        for x in _starts(width, across * side_px, max(1, across - 1) * side_px):
            yield tuple(
                _tile(x + i * side_px, y + j * side_px, image_px, side_px) for j in range(down) for i in range(across)
            )


def _starts(length: int, window: int, step: int) -> list[int]:
    """Where windows begin that leave no gap, the last one ending at the edge."""
    last = max(0, length - window)
    return sorted({*range(0, last, step), last})


def _tile(x: int, y: int, image_px: tuple[int, int], side_px: int) -> Tile:
    return Tile(x, y, min(x + side_px, image_px[0]), min(y + side_px, image_px[1]), 0.0)


def sequences(way: str, image_px: tuple[int, int], side_px: int) -> list[tuple[Tile, ...]]:
    """The tiles of each sequence."""
    if way == "longest":
        return list(blocks(image_px, side_px))
    return [(tile,) for tile in grid_tiles(image_px=image_px, tile_px=side_px, max_tiles=1 << 16)]


def read_page(reader: Reader, way: str, root: Path, image: str, rows: Sequence[EvalRow]) -> PageAnswers:
    """Every sequence of a page, asked every question about it."""
    pixels = load_image(root / image).pixels
    size, side = (pixels.shape[1], pixels.shape[0]), reader.geometry.view_px
    shown = sequences(way, size, side)
    places = list(dict.fromkeys(tile.box for tiles in shown for tile in tiles))
    views = [global_view(pixels, side), *(crop(pixels, Tile(*box, 0.0), side) for box in places)]
    features = reader.features(views)
    index = {box: 1 + i for i, box in enumerate(places)}
    counts = [Counter[str]() for _ in rows]
    for tiles in shown:
        own = features[[0, *(index[tile.box] for tile in tiles)]]
        for count, answer in zip(counts, reader.answers(own, tiles, size, [row.question for row in rows]), strict=True):
            count[answer] += 1
    tokens = reader.geometry.tokens_per_view * (1 + len(grid_tiles(image_px=size, tile_px=side, max_tiles=1 << 16)))
    answers = tuple((row.question, dict(count)) for row, count in zip(rows, counts, strict=True))
    return PageAnswers(way, image, tokens, len(shown), answers)


def vote(given: dict[str, int]) -> str:
    """The answer that was given most often, the first of equals; `not visible` where nothing else was given."""
    spoken = {answer: count for answer, count in given.items() if answer.strip() not in _SILENT}
    return max(spoken, key=lambda answer: spoken[answer]) if spoken else NOT_VISIBLE


def read_log(path: Path) -> list[PageAnswers]:
    """Pages that are done; a last line that was cut short is passed over."""
    found = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            found.append(_page(json.loads(line)))
        except ValueError:
            continue
    return found


def _page(data: dict[str, Any]) -> PageAnswers:
    return PageAnswers(**data | {"answers": tuple((question, given) for question, given in data["answers"])})


def measure(held_out: Path, out: Path, *, limit: int | None = None) -> None:
    """Append what is missing."""
    rows = [row for row in read_rows(held_out / "questions.jsonl", limit=limit) if row.task == "value"]
    done = {(page.way, page.image) for page in read_log(out)}
    if out.exists() and not out.read_bytes().endswith(b"\n"):  # cut short: it must not run into the next line
        out.write_bytes(out.read_bytes().rpartition(b"\n")[0] + b"\n")
    reader = Reader(open_bundle(NANO))
    images = dict.fromkeys(row.image for row in rows)
    for way in reversed(WAYS):  # the stronger one first
        for image in images:
            own = [row for row in rows if row.image == image]
            if (way, image) not in done:
                page = read_page(reader, way, held_out, image, own)
                with out.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(page.__dict__, ensure_ascii=False) + "\n")
                print(image, way, page.sequences, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, help="only the first N rows of questions.jsonl")
    arguments = parser.parse_args()
    measure(arguments.held_out, arguments.out, limit=arguments.limit)

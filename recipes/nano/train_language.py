"""Stage 1: teach projector and decoder to answer, with the vision tower frozen; stage 2: all three together."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlavaForConditionalGeneration

from vlm_edge.tokens.reduce import threshold_merge
from vlm_edge.vision.tiling import Tile, reading_order

from . import views
from .labels import GRID, TileBox
from .model import build_model, whiten_projector
from .optimizers import Optimizers
from .pages import Page, Style, draw_page
from .questions import training_questions
from .saving import Checkpoint
from .tokenizer import ANSWER, BOS, EOS, GLOBAL, QUESTION, TILE, build_tokenizer, encode_answer
from .train_vision import normalize, soft_cross_entropy
from .vocabulary import COLORS, LOCATIONS

PAGES, QUESTIONS = 12, 12
LOCATION_WEIGHT = 0.5
JOINT_LOCATION_WEIGHT, JOINT_COLOR_WEIGHT = 2.0, 4.0
"""Stage 2 weighs what one token decides: a colour is one token beside the eight of a value, and is learnt as much more slowly."""
TOWER_RATE = 0.3
"""Of the tower in stage 2, beside the rest: it already sees; its features only bend towards the decoder."""
TOKENIZER = build_tokenizer()
ID = {name: TOKENIZER.token_to_id(name) for name in (ANSWER, BOS, EOS, GLOBAL, QUESTION, TILE)}
COLOR_IDS = [TOKENIZER.token_to_id(f"▁{color}") for color in COLORS]
FIRST_LOCATION = TOKENIZER.token_to_id(str(LOCATIONS[0]))


@dataclass(frozen=True)
class Example:
    """One page: its views uint8 [V, S, S, 3] and its questions as (prompt ids, answer ids)."""

    pixels: np.ndarray
    pairs: list[tuple[list[int], list[int]]]


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
    ordered = reading_order([Tile(t.x0, t.y0, t.x1, t.y1, 0.0) for t in tiles[:6]])
    return [TileBox(t.x0, t.y0) for t in ordered]


def _holds(tile: TileBox, box: tuple[float, float, float, float]) -> bool:
    return tile.x0 <= box[0] and box[2] <= tile.x1 and tile.y0 <= box[1] and box[3] <= tile.y1


def draw_example(rng: np.random.Generator, progress: float) -> Example:
    """Early on (progress 0 to 0.25) pages hold one card and no long lines; later everything."""
    ease = min(1.0, progress / 0.25)
    style = Style(max_cards=1 + int(5 * ease), long_lines=0.18 if ease > 0.6 else 0.0)
    page = draw_page(rng, style)
    tiles = choose_tiles(rng, page)
    pixels = [views.global_view(page)] + [views.worn(rng, views.cut(page, tile)) for tile in tiles]
    pairs = [
        ([ID[QUESTION], *TOKENIZER.encode(q.text, add_special_tokens=False).ids, ID[ANSWER]],
         [*encode_answer(TOKENIZER, q.answer), ID[EOS]])
        for q in training_questions(rng, page, tiles, QUESTIONS)
    ]  # fmt: skip
    return Example(np.stack(pixels), pairs)


class Examples(IterableDataset):
    """Batch i of stage s depends on (seed, s, i) and the total number of steps only."""

    def __init__(self, seed: tuple[int, int], start: int, steps: int, *, curriculum: bool) -> None:
        self.seed, self.start, self.steps, self.curriculum = seed, start, steps, curriculum

    def __iter__(self) -> Iterator[list[Example]]:
        for index in range(self.start, self.steps):
            rng = np.random.default_rng((*self.seed, index))
            progress = index / self.steps if self.curriculum else 1.0
            yield [draw_example(rng, progress) for _ in range(PAGES)]


@dataclass(frozen=True)
class Packed:
    """A batch: embeddings [B, L, D], 4-D mask, positions [B, L], and where answers are predicted with their ids."""

    embeds: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    at: tuple[torch.Tensor, torch.Tensor]
    targets: torch.Tensor


def pack(
    model: LlavaForConditionalGeneration, batch: list[Example], features: torch.Tensor, rng: np.random.Generator
) -> Packed:
    """Put each page's views once and all its questions behind them; a question sees the views and itself only.

    features: [all views of the batch, P, Dv]. On three pages of five, neighbouring tokens are merged, as the runtime may.
    """
    embed, project = model.get_input_embeddings(), model.model.multi_modal_projector
    rows, segments, positions, answers = [], [], [], []
    first = 0
    for example in batch:
        count = len(example.pixels)
        own = features[first : first + count]
        first += count
        kept = _merged(own, float(rng.uniform(0.8, 0.98))) if rng.random() < 0.6 else list(own)
        visual = project(torch.cat(kept)).split([len(k) for k in kept])
        markers = embed(torch.tensor([ID[BOS], ID[GLOBAL], ID[TILE]]))
        parts = [markers[:1]]
        for i, tokens in enumerate(visual):
            parts += [markers[1 if i == 0 else 2][None], tokens]
        prefix = sum(len(p) for p in parts)
        ids = [prompt + answer[:-1] for prompt, answer in example.pairs]
        parts.append(embed(torch.tensor([i for pair in ids for i in pair])))
        rows.append(torch.cat(parts))
        segments.append([0] * prefix + [n + 1 for n, pair in enumerate(ids) for _ in pair])
        positions.append(list(range(prefix)) + [prefix + i for pair in ids for i in range(len(pair))])
        offset = prefix
        spots: list[tuple[int, int]] = []
        for prompt, answer in example.pairs:
            spots += [(offset + len(prompt) - 1 + i, token) for i, token in enumerate(answer)]
            offset += len(prompt) + len(answer) - 1
        answers.append(spots)
    longest = max(len(row) for row in rows)
    embeds = torch.stack([F.pad(row, (0, 0, 0, longest - len(row))) for row in rows])
    segment = torch.tensor([s + [-1] * (longest - len(s)) for s in segments])
    position = torch.tensor([p + [0] * (longest - len(p)) for p in positions])
    same = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])
    allowed = (same & (segment[:, None, :] >= 0)).tril() | torch.eye(longest, dtype=torch.bool)
    mask = torch.zeros(allowed.shape).masked_fill_(~allowed, -1e9)[:, None]
    at = [(b, spot, token) for b, spots in enumerate(answers) for spot, token in spots]
    where = torch.tensor(at).T
    return Packed(embeds, mask, position, (where[0], where[1]), where[2])


def _merged(features: torch.Tensor, threshold: float) -> list[torch.Tensor]:
    """Merge with the runtime's own code, then repeat the averages in torch so that gradients pass (stage 2)."""
    sets = threshold_merge(features.detach().numpy(), grid=(GRID, GRID), threshold=threshold)
    merged = []
    for view, tokens in zip(features, sets, strict=True):
        members = torch.from_numpy(np.asarray(tokens.members)).long()
        sums = torch.zeros(len(tokens.sizes), features.shape[-1]).index_add(0, members, view)
        merged.append(sums / torch.from_numpy(tokens.sizes)[:, None])
    return merged


def answer_loss(model: LlavaForConditionalGeneration, packed: Packed, *, joint: bool) -> tuple[torch.Tensor, float]:
    """Cross entropy on answer tokens (location tokens with soft neighbours), and the share of tokens that are right."""
    hidden = model.model.language_model(
        inputs_embeds=packed.embeds, attention_mask=packed.mask.to(packed.embeds.dtype), position_ids=packed.positions,
        use_cache=False,
    ).last_hidden_state  # fmt: skip
    logits = model.lm_head(hidden[packed.at]).float()
    targets = packed.targets
    place = (targets >= FIRST_LOCATION) & (targets < FIRST_LOCATION + len(LOCATIONS))
    weight = torch.ones(logits.shape[-1])
    weight[COLOR_IDS] = JOINT_COLOR_WEIGHT if joint else 1.0
    total = F.cross_entropy(logits[~place], targets[~place], weight=weight, reduction="sum")
    if place.any():
        span = slice(FIRST_LOCATION, FIRST_LOCATION + len(LOCATIONS))
        inside = torch.logsumexp(logits[place], -1) - torch.logsumexp(logits[place][:, span], -1)
        soft = soft_cross_entropy(logits[place][:, span], targets[place] - FIRST_LOCATION)
        total = total + (JOINT_LOCATION_WEIGHT if joint else LOCATION_WEIGHT) * (soft * place.sum() + inside.sum())
    return total / len(targets), (logits.argmax(-1) == targets).float().mean().item()


def train(
    vision: Path, out: Path, *, steps: int, seed: int = 0, minutes: float | None = None, start_from: Path | None = None,
    rate: float = 1.0,
) -> None:  # fmt: skip
    """Stage 1 (tower frozen), or with `start_from` stage 2 (everything trains); an existing `out` is continued."""
    torch.manual_seed(seed)
    model = build_model()
    joint = start_from is not None
    tower = {k.removeprefix("tower."): v for k, v in torch.load(vision)["stage"].items() if k.startswith("tower.")}
    model.model.vision_tower.load_state_dict(tower)
    model.model.vision_tower.requires_grad_(joint)
    model.model.vision_tower.base_model.post_layernorm.requires_grad_(False)
    if start_from is not None:
        model.load_state_dict(torch.load(start_from)["model"])
    language = {
        "projector": model.model.multi_modal_projector,
        "decoder": model.model.language_model,
        "head": model.lm_head,
    }
    trained = language | ({"tower": model.model.vision_tower} if joint else {})
    rates = {"tower": TOWER_RATE}
    optimizers = Optimizers(trained, muon_lr=3e-3 * rate, adamw_lr=1.8e-3 * rate, steps=steps, rates=rates)
    checkpoint = Checkpoint(out, "model", model, optimizers, minutes)
    start = checkpoint.resume()
    examples = Examples((seed, 1 + joint), start, steps, curriculum=not joint)
    loader = DataLoader(examples, batch_size=None, num_workers=1, prefetch_factor=6)
    see = torch.compile(lambda pixels: model.model.vision_tower(pixels).last_hidden_state[:, 1:], dynamic=True)
    shown_loss = shown_right = None
    for step, batch in zip(range(start, steps), loader, strict=True):
        pixels = normalize(torch.from_numpy(np.concatenate([e.pixels for e in batch])))
        with torch.set_grad_enabled(joint), torch.autocast("cpu", torch.bfloat16):
            features = see(pixels).float()
        if step == 0 and not joint:
            whiten_projector(model, features.reshape(-1, features.shape[-1]))
        with torch.autocast("cpu", torch.bfloat16):
            packed = pack(model, batch, features, np.random.default_rng((seed, 7, step)))
            loss, right = answer_loss(model, packed, joint=joint)
        loss.backward()
        factor = optimizers.step(step)
        shown_loss = loss.item() if shown_loss is None else 0.95 * shown_loss + 0.05 * loss.item()
        shown_right = right if shown_right is None else 0.95 * shown_right + 0.05 * right
        if step % 25 == 0:
            state = f"loss {shown_loss:.4f} right {shown_right:.4f} length {packed.embeds.shape[1]}"
            print(f"step {step} {checkpoint.seconds:.0f}s lr {factor:.2f} {state}", flush=True)
        if checkpoint.after(step):
            break


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vision", type=Path, required=True, help="checkpoint of stage 0")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start-from", type=Path, help="checkpoint of stage 1: train everything together from there")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--rate", type=float, default=1.0, help="factor on both learning rates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=None)
    a = parser.parse_args()
    train(a.vision, a.out, steps=a.steps, seed=a.seed, minutes=a.minutes, start_from=a.start_from, rate=a.rate)

"""Stages 1, 2, 4 and 5: projector and decoder learn to answer (1), then tower, projector and decoder together (2).

Stage 4 teaches the decoder, from pages with a single long line on, to find where a line goes on in the next tile (with the tower
frozen); stage 5 trains everything together, the tower on its dense labels as well. Stage 3 is train_vision's.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import LlavaForConditionalGeneration

from .examples import TOKENIZER, Batches
from .labels import NO_LABEL, TILE_HEADS
from .model import DECODER_WIDTH, build_model, whiten_projector
from .optimizers import Optimizers
from .packing import Packed, pack
from .saving import Checkpoint, load_state
from .train_vision import DenseHeads, losses, normalize, soft_cross_entropy
from .vocabulary import LOCATIONS


@dataclass(frozen=True)
class Stage:
    """tower: whether it trains too, at TOWER_RATE.  links, dense: whether the decoder is asked for links, and the tower for its
    dense labels.  pages, sheets: in a batch.  weights: of a task's answer tokens, where not 1.

    muon: whether matrices train with Muon.  With it the decoder had not found the first link after 140 steps; AdamW alone
    takes about 200 and from then on links on full pages are learnt as well.
    """

    tower: bool
    links: bool
    dense: bool
    muon: bool
    pages: int
    sheets: int
    weights: Mapping[str, float]


ONE_TOKEN_WEIGHTS = {"color": 4.0, "count": 4.0, "where": 2.0}
"""One token decides these answers, beside the eight of a value: at equal weight they are learnt as much more slowly."""
STAGES = {
    1: Stage(tower=False, links=False, dense=False, muon=True, pages=12, sheets=0, weights={"where": 0.5}),
    2: Stage(tower=True, links=False, dense=False, muon=True, pages=12, sheets=0, weights={"color": 4.0, "where": 2.0}),
    4: Stage(tower=False, links=True, dense=False, muon=False, pages=6, sheets=0, weights=ONE_TOKEN_WEIGHTS),
    5: Stage(tower=True, links=True, dense=True, muon=True, pages=12, sheets=2, weights=ONE_TOKEN_WEIGHTS),
}
ADAMW_ALONE_LR = 1e-3
TOWER_RATE = 0.3
"""Beside the rest: the tower already sees; its features only bend towards the decoder."""
LINK_LAYERS = {"key1": 1, "key2": 2, "index2": 2}
"""Stages 4 and 5 ask the decoder's first two layers, where a line goes on in the next tile, for its key and the place in the value:
only the tokens before tell. From answers alone that is not found in 400 steps."""
DENSE_WEIGHT = 0.3
FIRST_LOCATION = TOKENIZER.token_to_id(str(LOCATIONS[0]))


def link_heads() -> nn.ModuleDict:
    """Linear readings of the decoder's hidden states for links; they are thrown away afterwards."""
    return nn.ModuleDict({name: nn.Linear(DECODER_WIDTH, TILE_HEADS[name[:-1]]) for name in LINK_LAYERS})


def answer_loss(
    model: LlavaForConditionalGeneration, packed: Packed, links: nn.ModuleDict | None
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Cross entropy on answer tokens (location tokens with soft neighbours), that on links, and the share of right tokens."""
    run = model.model.language_model(
        inputs_embeds=packed.embeds, attention_mask=packed.mask.to(packed.embeds.dtype), position_ids=packed.positions,
        use_cache=False, output_hidden_states=links is not None,
    )  # fmt: skip
    link_loss = torch.zeros(())
    for name, head in (links or {}).items():
        labels = packed.links[name[:-1]]
        if not (labels != NO_LABEL).any():
            continue
        hidden = run.hidden_states[LINK_LAYERS[name]][labels != NO_LABEL]
        found = head(F.layer_norm(hidden.float(), hidden.shape[-1:])).float()
        link_loss = link_loss + F.cross_entropy(found, labels[labels != NO_LABEL])
    logits = model.lm_head(run.last_hidden_state[packed.at]).float()
    targets, weights = packed.targets, packed.weights
    place = (targets >= FIRST_LOCATION) & (targets < FIRST_LOCATION + len(LOCATIONS))
    total = (weights[~place] * F.cross_entropy(logits[~place], targets[~place], reduction="none")).sum()
    if place.any():
        span = slice(FIRST_LOCATION, FIRST_LOCATION + len(LOCATIONS))
        inside = torch.logsumexp(logits[place], -1) - torch.logsumexp(logits[place][:, span], -1)
        soft = soft_cross_entropy(logits[place][:, span], targets[place] - FIRST_LOCATION)
        total = total + weights[place][0] * (soft * place.sum() + inside.sum())
    right = (logits.argmax(-1) == targets).float().mean().item()
    return total / len(targets), link_loss, right


def load_tower(model: LlavaForConditionalGeneration, vision: Path) -> DenseHeads:
    """Load the vision tower of stage 0 or 3; returns the heads that were trained with it."""
    saved = torch.load(vision)
    model.model.vision_tower.load_state_dict(saved["tower"])
    heads = DenseHeads()
    heads.load_state_dict(saved["heads"])
    return heads


def train(
    out: Path, *, stage: int, start_from: Path | None, vision: Path | None, steps: int, seed: int = 0,
    minutes: float | None = None, rate: float = 1.0,
) -> None:  # fmt: skip
    """Train one stage to `steps`; an existing `out` is continued.

    start_from: file of the stage before (or a saved Hugging Face folder); none for stage 1.  vision: file of the vision stage
    before, whose tower and dense heads go on: stage 0 for stage 1, stage 3 for stages 4 and 5.
    """
    torch.manual_seed(seed)
    model = build_model()
    what = STAGES[stage]
    if start_from is not None:
        model.load_state_dict(load_state(start_from))
    dense = load_tower(model, vision) if vision is not None else None
    model.model.vision_tower.requires_grad_(what.tower)
    model.model.vision_tower.base_model.post_layernorm.requires_grad_(False)
    trained: dict[str, nn.Module] = {
        "projector": model.model.multi_modal_projector,
        "decoder": model.model.language_model,
        "head": model.lm_head,
    }
    saved: dict[str, nn.Module] = {"model": model}
    if what.tower:
        trained["tower"] = model.model.vision_tower
    links = link_heads() if what.links else None
    if links is not None:
        trained["link_head"] = saved["links"] = links
        if start_from is not None and start_from.is_file():
            links.load_state_dict(torch.load(start_from).get("links", links.state_dict()))
    if what.dense and dense is not None:
        trained["dense_head"] = saved["dense"] = dense
    rates = {"tower": TOWER_RATE, "link_head": 3.0 if stage == 4 else 1.0}
    muon, adamw = (3e-3 * rate, 1.8e-3 * rate) if what.muon else (None, ADAMW_ALONE_LR * rate)
    optimizers = Optimizers(trained, muon_lr=muon, adamw_lr=adamw, steps=steps, rates=rates)
    checkpoint = Checkpoint(out, saved, optimizers, minutes)
    start = checkpoint.resume()
    batches = Batches(seed, stage, start, steps=steps, pages=what.pages, sheets=what.sheets)
    loader = DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=6)
    see = torch.compile(lambda pixels: model.model.vision_tower(pixels).last_hidden_state[:, 1:], dynamic=True)
    shown: dict[str, float] = {}
    for step, batch in zip(range(start, steps), loader, strict=True):
        with torch.set_grad_enabled(what.tower), torch.autocast("cpu", torch.bfloat16):
            features = see(normalize(torch.from_numpy(batch.pixels()))).float()
        if step == 0 and stage == 1:
            whiten_projector(model, features.reshape(-1, features.shape[-1]))
        with torch.autocast("cpu", torch.bfloat16):
            packed = pack(model, batch.examples, features, np.random.default_rng((seed, 6 + stage, step)), what.weights)
            loss, link_loss, right = answer_loss(model, packed, links)
        now = {"loss": loss.item(), "right": right, "links": link_loss.item()}
        total = loss + link_loss
        if what.dense and dense is not None:
            dense_loss, parts = losses(dense, features, torch.from_numpy(batch.dense_labels()))
            total = total + DENSE_WEIGHT * dense_loss
            now |= {"dense": dense_loss.item(), "char0": parts.get("char0", 0.0)}
        total.backward()
        factor = optimizers.step(step, warmup=30 if stage == 4 else 100)
        shown = {name: 0.95 * shown.get(name, value) + 0.05 * value for name, value in now.items()}
        if step % 25 == 0:
            state = " ".join(f"{name} {value:.4f}" for name, value in shown.items())
            print(
                f"step {step} {checkpoint.seconds:.0f}s lr {factor:.2f} {state} length {packed.embeds.shape[1]}",
                flush=True,
            )
        if checkpoint.after(step):
            break


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", type=int, choices=list(STAGES))
    parser.add_argument("out", type=Path)
    parser.add_argument("--start-from", type=Path, help="file of the stage before, or a saved folder")
    parser.add_argument("--vision", type=Path, help="file of stage 0 (for stage 1) or 3 (for stages 4 and 5)")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--rate", type=float, default=1.0, help="factor on both learning rates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=None)
    a = parser.parse_args()
    train(
        a.out, stage=a.stage, start_from=a.start_from, vision=a.vision, steps=a.steps, seed=a.seed, minutes=a.minutes,
        rate=a.rate,
    )  # fmt: skip

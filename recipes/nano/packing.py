"""A batch of examples -> one padded tensor of embeddings, with the mask that keeps the questions about a page apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from vlm_edge.tokens.positions import row_order
from vlm_edge.tokens.reduce import threshold_merge

from .examples import TOKENIZER, Example
from .labels import GRID, LINK_HEADS, NO_LABEL
from .tokenizer import BOS, GLOBAL, TILE

_BOS, _GLOBAL, _TILE = (TOKENIZER.token_to_id(name) for name in (BOS, GLOBAL, TILE))


@dataclass(frozen=True)
class Packed:
    """A batch: embeddings [B, L, D], mask [B, 1, L, L] to add to scores, positions [B, L], and what is to be predicted.

    at: batch and position of each answer token [N]; targets, weights: its id and weight [N].  links: labels [B, L].
    """

    embeds: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    at: tuple[torch.Tensor, torch.Tensor]
    targets: torch.Tensor
    weights: torch.Tensor
    links: dict[str, torch.Tensor]


def pack(
    model: LlavaForConditionalGeneration, examples: list[Example], features: torch.Tensor, rng: np.random.Generator,
    task_weights: Mapping[str, float],
) -> Packed:  # fmt: skip
    """Put each page's views once and all its questions behind them; a question sees the views and itself only.

    features: [all views of the examples, and perhaps more behind, P, Dv]. On three pages of five, neighbouring tokens are
    merged, as the runtime may.
    """
    embed, project = model.get_input_embeddings(), model.model.multi_modal_projector
    markers = embed(torch.tensor([_BOS, _GLOBAL, _TILE]))
    rows, segments, positions, answers, linked = [], [], [], [], []
    first = 0
    for example in examples:
        own = features[first : first + len(example.pixels)]
        first += len(own)
        threshold = float(rng.uniform(0.8, 0.98)) if rng.random() < 0.6 else 1.0
        kept, first_cells = _joined(own, threshold, example.strips)
        visual = project(torch.cat(kept)).split([len(k) for k in kept])
        parts = [markers[:1]]
        for strip, tokens in zip(example.strips, visual, strict=True):
            parts += [markers[1 if strip == (0,) else 2].expand(len(strip), -1), tokens]
        linked.append(
            {name: _link_row(found.ravel(), example.strips, first_cells) for name, found in example.links.items()}
        )
        prefix = sum(len(p) for p in parts)
        texts = [each.prompt + each.answer[:-1] for each in example.asked]
        rows.append(torch.cat([*parts, embed(torch.tensor([i for ids in texts for i in ids]))]))
        segments.append([0] * prefix + [n + 1 for n, ids in enumerate(texts) for _ in ids])
        positions.append(list(range(prefix)) + [prefix + i for ids in texts for i in range(len(ids))])
        offset = prefix - 1
        spots: list[tuple[int, int, float]] = []
        for each in example.asked:
            at = offset + len(each.prompt)
            spots += [(at + i, token, task_weights.get(each.task, 1.0)) for i, token in enumerate(each.answer)]
            offset = at + len(each.answer) - 1
        answers.append(spots)
    longest = max(len(row) for row in rows)
    embeds = torch.stack([F.pad(row, (0, 0, 0, longest - len(row))) for row in rows])
    position = torch.tensor([p + [0] * (longest - len(p)) for p in positions])
    flat = [(b, *spot) for b, spots in enumerate(answers) for spot in spots]
    at_row, at_column, targets = torch.tensor([spot[:3] for spot in flat]).T
    links = {
        name: torch.stack([F.pad(row[name], (0, longest - len(row[name])), value=NO_LABEL) for row in linked])
        for name in LINK_HEADS
    }
    weights = torch.tensor([spot[3] for spot in flat])
    return Packed(embeds, _mask(segments, longest), position, (at_row, at_column), targets, weights, links)


def _mask(segments: list[list[int]], longest: int) -> torch.Tensor:
    """Causal; the views are segment 0 and seen by all, every other segment by itself only. fp32 [B, 1, L, L]."""
    segment = torch.tensor([s + [-1] * (longest - len(s)) for s in segments])
    same = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])
    allowed = (same & (segment[:, None, :] >= 0)).tril() | torch.eye(longest, dtype=torch.bool)
    return torch.zeros(allowed.shape).masked_fill_(~allowed, -1e9)[:, None]


def _link_row(labels: np.ndarray, strips: Sequence[tuple[int, ...]], first_cells: list[np.ndarray]) -> torch.Tensor:
    """Labels of a row's positions up to the last visual token: those of the first patch that each token covers."""
    parts = [np.full(1, NO_LABEL)]
    for strip, cells in zip(strips, first_cells, strict=True):
        parts += [np.full(len(strip), NO_LABEL), labels[cells]]
    return torch.from_numpy(np.concatenate(parts))


def _joined(
    features: torch.Tensor, threshold: float, strips: Sequence[tuple[int, ...]]
) -> tuple[list[torch.Tensor], list[np.ndarray]]:
    """Merge and join with the runtime's own code, then repeat its averages in torch so that gradients pass to the tower.

    Returns for each strip its tokens [T, Dv], and for each token the first patch that it covers, counted over all views.
    """
    sets = threshold_merge(features.detach().numpy(), grid=(GRID, GRID), threshold=threshold)
    merged, firsts = [], []
    for number, (view, tokens) in enumerate(zip(features, sets, strict=True)):
        firsts.append(np.unique(tokens.members, return_index=True)[1] + number * len(view))
        members = torch.from_numpy(np.asarray(tokens.members)).long()
        sums = torch.zeros(len(tokens.sizes), features.shape[-1]).index_add(0, members, view)
        merged.append(sums / torch.from_numpy(tokens.sizes)[:, None])
    orders = [row_order([sets[i] for i in strip], (GRID, GRID)) for strip in strips]
    found = [
        torch.cat([merged[i] for i in s])[torch.from_numpy(order)] for s, order in zip(strips, orders, strict=True)
    ]
    return found, [np.concatenate([firsts[i] for i in s])[order] for s, order in zip(strips, orders, strict=True)]

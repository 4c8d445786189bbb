"""Questions about the same views of a page in one sequence behind one prefix, and what a decoder makes of their answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from benchmarks.nano_sequences import Asked
from vlm_edge.core.bundle import atomic_write

TENSORS, TABLE = "questions.safetensors", "questions.json"


@dataclass(frozen=True)
class Packed:
    """embeds [1, L, D]; mask [1, 1, L, L], 0 where a token is seen; positions [1, L]; ends: where each question ends."""

    embeds: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    ends: tuple[int, ...]


@dataclass(frozen=True)
class Answers:
    """Of each question, in their order: log-probabilities of all its answer tokens [n, V]; whether the true token is the
    likeliest at each; and the mean negative log-likelihood of the true ones in nats."""

    log_probabilities: list[torch.Tensor]
    exact: torch.Tensor
    nll: torch.Tensor


def groups(asked: Sequence[Asked]) -> Iterator[list[Asked]]:
    """Neighbours that share a prefix."""
    for _, found in groupby(asked, key=lambda one: id(one.prefix)):
        yield list(found)


def packed(group: Sequence[Asked]) -> Packed:
    """The prefix once, then every question: each sees the prefix and itself, at the positions that it has alone."""
    prefix = len(group[0].prefix)
    lengths = [len(one.own) for one in group]
    total = prefix + sum(lengths)
    seen = torch.zeros(total, total, dtype=torch.bool)
    seen[:, :prefix] = True
    positions, ends, first = [torch.arange(prefix)], [], prefix
    for length in lengths:
        seen[first : first + length, first : first + length] = True
        positions.append(torch.arange(prefix, prefix + length))
        first += length
        ends.append(first)
    mask = torch.zeros(total, total).masked_fill(~seen.tril(), torch.finfo(torch.float32).min)
    embeds = torch.cat([group[0].prefix, *(one.own for one in group)])
    return Packed(embeds[None], mask[None, None], torch.cat(positions)[None], tuple(ends))


def answers(model: Any, asked: Sequence[Asked]) -> Answers:
    """Teacher-forced: greedy decoding gives the true answer exactly when every true token, the end included, is the likeliest.

    model: a LlavaForConditionalGeneration.  asked: neighbours with one prefix are computed together.
    """
    found, exact, nll = [], [], []
    with torch.no_grad():
        for group in groups(asked):
            own = packed(group)
            states = model.model.language_model(
                inputs_embeds=own.embeds, attention_mask=own.mask, position_ids=own.positions, use_cache=False
            ).last_hidden_state[0]
            for one, end in zip(group, own.ends, strict=True):
                count = len(one.answer)
                rows = model.lm_head(states[end - count : end]).log_softmax(-1)
                wanted = torch.tensor(one.answer)
                found.append(rows)
                exact.append(bool((rows.argmax(-1) == wanted).all()))
                nll.append(float(-rows[torch.arange(count), wanted].mean()))
    return Answers(found, torch.tensor(exact), torch.tensor(nll, dtype=torch.float64))


def divergences(reference: Answers, other: Answers) -> torch.Tensor:
    """Mean KL(reference || other) over each question's answer tokens, in nats."""
    pairs = zip(reference.log_probabilities, other.log_probabilities, strict=True)
    return torch.tensor([float((p.exp() * (p - q)).sum(-1).mean()) for p, q in pairs], dtype=torch.float64)


def save_answers(found: Answers, path: Path) -> None:
    """Write them, for a run that goes on later."""
    counts = torch.tensor([len(rows) for rows in found.log_probabilities])
    tensors = {"rows": torch.cat(found.log_probabilities), "counts": counts, "exact": found.exact, "nll": found.nll}
    with atomic_write(path) as stream:
        stream.write(save(tensors))


def load_answers(path: Path) -> Answers:
    """What save_answers wrote."""
    tensors = load_file(path)
    return Answers(list(tensors["rows"].split(tensors["counts"].tolist())), tensors["exact"], tensors["nll"])


def kept(folder: Path, draw: Callable[[], Iterator[Asked]]) -> list[Asked]:
    """The questions in a folder; drawn and written there where there are none yet: drawing pages is slow."""
    if not (folder / TABLE).is_file():
        _write(folder, _together(list(draw())))
    tensors = load_file(folder / TENSORS)
    rows = json.loads((folder / TABLE).read_text("utf-8"))
    return [
        Asked(tensors[f"prefix.{prefix}"], tensors[f"own.{i}"], tuple(answer), task, page)
        for i, (prefix, answer, task, page) in enumerate(rows)
    ]


def _together(asked: list[Asked]) -> list[Asked]:
    first: dict[int, int] = {}
    for i, one in enumerate(asked):
        first.setdefault(id(one.prefix), i)
    return sorted(asked, key=lambda one: first[id(one.prefix)])


def _write(folder: Path, asked: Sequence[Asked]) -> None:
    numbers: dict[int, int] = {}
    tensors, rows = {}, []
    for i, one in enumerate(asked):
        number = numbers.setdefault(id(one.prefix), len(numbers))
        tensors[f"prefix.{number}"], tensors[f"own.{i}"] = one.prefix, one.own.contiguous()
        rows.append([number, list(one.answer), one.task, one.page])
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / TENSORS) as stream:
        stream.write(save(tensors))
    with atomic_write(folder / TABLE) as stream:
        stream.write(json.dumps(rows).encode() + b"\n")

"""How far a rounded nano model is from the fp32 one on answer tokens of held-out questions."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.nano_sequences import Asked
from vlm_edge.core.checkpoint import open_checkpoint
from vlm_edge.models.weights import load_parts
from vlm_edge.quant.reading import dequantized


@dataclass(frozen=True)
class Answers:
    """Of each question: log-probabilities of all its answer tokens [n, V], and whether the true token is the likeliest at each."""

    log_probabilities: list[torch.Tensor]
    exact: torch.Tensor
    nll: torch.Tensor


def decoder(checkpoint: Path) -> Any:
    """A LLaVA checkpoint's language model and head in fp32."""
    return load_parts(open_checkpoint(checkpoint), ("model.language_model", "lm_head"), dtype=torch.float32)


def rounded_decoder(model: Any, folder: Path) -> Any:
    """The same with the weights of a checkpoint in AutoAWQ's format."""
    other = deepcopy(model)
    names = {name.removeprefix("model."): parameter for name, parameter in other.named_parameters()}
    with torch.no_grad():
        for name, tensor in dequantized(folder):
            own = name.replace("language_model.model.", "language_model.").replace("language_model.lm_head", "lm_head")
            own = own.removeprefix("model.")
            if own in names and not names[own].is_meta:
                names[own].copy_(tensor)
    return other


def answers(model: Any, held_out: Sequence[Asked]) -> Answers:
    """Teacher-forced: greedy decoding gives the true answer exactly when every true token is the likeliest."""
    found, exact, nll = [], [], []
    with torch.no_grad():
        for asked in held_out:
            count = len(asked.answer)
            states = model.model.language_model(inputs_embeds=asked.hidden[None], use_cache=False).last_hidden_state
            rows = model.lm_head(states[0, -count:]).log_softmax(-1)
            wanted = torch.tensor(asked.answer)
            found.append(rows)
            exact.append(bool((rows.argmax(-1) == wanted).all()))
            nll.append(float(-rows[torch.arange(count), wanted].mean()))
    return Answers(found, torch.tensor(exact), torch.tensor(nll, dtype=torch.float64))


def divergences(reference: Answers, other: Answers) -> torch.Tensor:
    """Mean KL(reference || other) over each question's answer tokens, in nats."""
    pairs = zip(reference.log_probabilities, other.log_probabilities, strict=True)
    return torch.tensor([float((p.exp() * (p - q)).sum(-1).mean()) for p, q in pairs], dtype=torch.float64)

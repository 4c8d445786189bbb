"""Encoder and decoder of a family's model in torch, behind the protocols that the pipeline knows.

The decoder is transformers' own text model. It runs everything that it was given again at each step, so that no cache can hide a
mistake.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tests import tiny_vlms


@dataclass
class TorchEngine:
    """transformers' text model as an LlmEngine without a cache; it keeps the logits that it gave.

    graph: an engine that is asked in its place.
    """

    model: Any
    logits: list[np.ndarray] = field(default_factory=list)
    positions: list[np.ndarray] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)
    graph: Any = None

    def __post_init__(self) -> None:
        config = self.model.config
        self.bidirectional = config.model_type == "paligemma"
        self.mrope = "qwen" in config.model_type
        self.embeds = torch.zeros(0, config.get_text_config().hidden_size)
        self.given = torch.zeros(3, 0, dtype=torch.int64)
        self.prefix = 0

    @property
    def length(self) -> int:
        return len(self.embeds)

    def rewind(self, length: int) -> None:
        assert 0 <= length <= self.length
        if self.graph:
            self.graph.rewind(length)
        self.embeds, self.given = self.embeds[:length], self.given[:, :length]

    def forward(self, embeds: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
        assert embeds.dtype == np.float32
        assert (positions is not None) == self.mrope
        if not self.length:
            self.prefix = len(embeds)
        self.chunks.append(len(embeds))
        self.embeds = torch.cat([self.embeds, torch.from_numpy(embeds)])
        if positions is not None:
            assert positions.dtype == np.int64
            assert positions.shape == (3, len(embeds))
            self.given = torch.cat([self.given, torch.from_numpy(positions)], dim=1)
            self.positions.append(positions)
        given = () if positions is None else (positions,)
        self.logits.append(self.graph.forward(embeds, *given) if self.graph else self._computed())
        return self.logits[-1]

    def _computed(self) -> np.ndarray:
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        with torch.no_grad():
            hidden = self.model.get_decoder()(inputs_embeds=self.embeds[None], **self._asked(), use_cache=False)
            logits = self.model.get_output_embeddings()(hidden.last_hidden_state[0, -1])
            return (cap * torch.tanh(logits / cap) if cap else logits).numpy()

    def _asked(self) -> dict[str, torch.Tensor]:
        if self.mrope:
            return {"position_ids": self.given[:, None]}
        if not self.bidirectional:
            return {}
        places = torch.arange(self.length)
        seen = (places[None] <= places[:, None]) | (torch.maximum(places[None], places[:, None]) < self.prefix)
        bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        return {"attention_mask": bias[None, None], "position_ids": places[None] + 1}


class TorchEncoder:
    """The module that an export traces, as an EncoderRunner."""

    def __init__(self, family: str, model: Any) -> None:
        self.module = tiny_vlms.component(family, model)
        self.inputs = tuple(self.module.axes)

    def encode(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        assert {*arrays} == {*self.inputs}
        with torch.no_grad():
            return self.module(**{name: torch.from_numpy(value) for name, value in arrays.items()}).numpy()

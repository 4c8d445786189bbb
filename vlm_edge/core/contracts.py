"""What pipeline code may expect of a family and of a backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.specs import ModelSpec, TextSpec

Floats = NDArray[np.float32]
MergeSite = Literal["before_projector", "after_projector"]


class EncoderRunner(Protocol):
    """Runs vision tower and projector."""

    def encode(self, pixels: Floats) -> Floats:
        """Pixels [B, 3, S, S] -> visual embeddings [B, P, Dl]."""
        ...


class LlmEngine(Protocol):
    """A decoder with one sequence in its KV cache."""

    def forward(self, embeds: Floats, positions: NDArray[np.int64] | None = None) -> Floats:
        """Append [L, D] to the cache and return the last position's logits [V]. One call serves prefill and decode.

        embeds: as the first layer reads them. What a model does between its table and that layer is the caller's part:
        Gemma's rows of text are multiplied by sqrt(D), its visual tokens are not.
        positions: [3, L], time, row and column of each; given exactly when `text.mrope_sections` is not empty.
        A decoder with `text.bidirectional_prefix` takes its whole prompt in one call at length 0, then single tokens.
        """
        ...

    def rewind(self, length: int) -> None:
        """Forget everything after the first `length` positions.

        A bidirectional prompt is forgotten whole or not at all: each of its positions has seen all of it.
        """
        ...

    @property
    def length(self) -> int:
        """Positions in the cache."""
        ...


class TextDecoder(Protocol):
    """Token ids back to text."""

    eos_ids: frozenset[int]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, control tokens left out."""
        ...


class PromptBuilder(Protocol):
    """A family's way from views and text to the decoder's input."""

    text: TextDecoder
    image_id: int
    """The placeholder's id in what `tokens` returns."""

    def pixels(self, views: Sequence[NDArray[np.uint8]]) -> Floats:
        """Views uint8 [S, S, 3] each -> normalised pixels [V, 3, S, S]."""
        ...

    def tokens(self, question: str, *, images: int) -> tuple[int, ...]:
        """The chat template filled in and tokenized; an image stands as one placeholder id.

        Raises BadInput when the question is empty or holds a control token.
        """
        ...

    def splice(self, tokens: Sequence[int], images: Sequence[Sequence[Floats]]) -> Floats:
        """Replace each placeholder by its image's views, [T, Dl] each: -> input embeddings [L, Dl]."""
        ...


@dataclass(frozen=True)
class VlmFamily:
    """What a folder under models/ provides.

    spec: config.json as a mapping -> ModelSpec.  prompt: builds the PromptBuilder from a bundle's files; None for a family
    that can be planned and not run.
    merge_sites: where a reduction of visual tokens keeps their meaning.
    model_types: the `model_type` values of config.json that are this family.
    """

    name: str
    spec: Callable[[Mapping[str, Any]], ModelSpec]
    prompt: Callable[[Bundle], PromptBuilder] | None
    merge_sites: frozenset[MergeSite]
    model_types: tuple[str, ...] = ()


@dataclass(frozen=True)
class Backend:
    """What a folder under backends/ provides: how to start an encoder and a decoder from a bundle's files."""

    name: str
    encoder: Callable[[Path, str, int], EncoderRunner]
    engine: Callable[[Path, TextSpec, str, int, int], LlmEngine]
    """(graph, target, threads) -> encoder; (graph, text, target, threads, context) -> decoder."""

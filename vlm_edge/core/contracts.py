"""What pipeline code may expect of a family and of a backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.dialects import COMMON, Dialect
from vlm_edge.core.geometry import ImageLayout, TokenGeometry
from vlm_edge.core.image_inputs import ImageInputs
from vlm_edge.core.specs import ModelSpec, TextSpec

if TYPE_CHECKING:  # a plan looks families up, and needs no NumPy for that
    import numpy as np
    from numpy.typing import NDArray

Floats: TypeAlias = "NDArray[np.float32]"
Positions: TypeAlias = "NDArray[np.int64]"
Span = tuple[int, ImageLayout | None]
"""Tokens that follow each other, and the image that they show; None for text."""
MergeSite = Literal["before_projector", "after_projector"]


class EncoderRunner(Protocol):
    """Runs vision tower and projector."""

    @property
    def inputs(self) -> Sequence[str]:
        """Names of the arrays that `encode` needs."""
        ...

    def encode(self, pixels: Floats | Mapping[str, NDArray[Any]]) -> Floats:
        """The arrays by name, or the only one -> visual embeddings [V, P, Dl] of views, or [rows, Dl] of packed patches."""
        ...


class LlmEngine(Protocol):
    """A decoder with one sequence in its KV cache."""

    def forward(self, embeds: Floats, positions: Positions | None = None) -> Floats:
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


class SaliencyRunner(Protocol):
    """Runs a saliency model, which need not know where in an image it is."""

    @property
    def stride_px(self) -> int:
        """Pixels along a side for which the model gives one value; sides of what it is given are multiples of it."""
        ...

    def run(self, pixels: Floats) -> Floats:
        """RGB in 0..1, [N, 3, H, W] -> how much each cell matters, [N, H / stride_px, W / stride_px], 0 or more."""
        ...


class TextCodec(Protocol):
    """Text to token ids, those to input embeddings, and back to text."""

    eos_ids: frozenset[int]

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of a text, without those that a tokenizer puts around a prompt."""
        ...

    def embed(self, tokens: Sequence[int]) -> Floats:
        """Input embeddings [len(tokens), D], as the decoder takes them."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, control tokens left out."""
        ...


class ViewMaker(Protocol):
    """A family's preprocessing, with the settings of one bundle."""

    geometry: TokenGeometry

    def prepare(self, image: Any, *, whole: bool = False, layout: ImageLayout | None = None) -> ImageInputs:
        """An image, uint8 [H, W, 3] or a vision.raster.Raster -> the encoder's arrays by the family's own rules.

        whole: in one view, without tiles.  layout: one of `geometry.subset`, for families with chosen_tiles.
        """
        ...

    def pixels(self, views: Sequence[NDArray[np.uint8]]) -> Floats:
        """Views uint8 [S, S, 3] each -> normalised pixels [V, 3, S, S], for families whose tiles may lie anywhere."""
        ...


class PromptBuilder(Protocol):
    """A family's way from views and text to the decoder's input.

    An image stands in a prompt as one or more runs of embeddings, with text between them where the family has markers.
    """

    views: ViewMaker
    text: TextCodec
    image_id: int
    """The placeholder's id in what `tokens` returns; it stands for one run."""

    def tokens(self, question: str, images: Sequence[ImageLayout]) -> tuple[int, ...]:
        """The chat template filled in and tokenized, with a placeholder for each run of each image.

        Raises BadInput when the question is empty or holds a control token.
        """
        ...

    def runs(self, views: Sequence[Floats], image: ImageLayout) -> list[Floats]:
        """An image's features by view, [T, D] each -> the embeddings [T, D] of each of its runs."""
        ...

    def reduced_runs(
        self, views: Sequence[Floats], image: ImageLayout, members: Sequence[NDArray[np.int32]]
    ) -> list[Floats]:
        """The same for reduced views; members: for each, the token that each of its places went to (see tokens.TokenSet)."""
        ...

    def positions(self, spans: Sequence[Span]) -> Positions | None:
        """Positions int64 [3, L] of a prompt's spans, where the decoder needs them.

        Those of a span depend on the spans before it alone.
        """
        ...


@dataclass(frozen=True)
class VlmFamily:
    """What a folder under models/ provides.

    spec: config.json as a mapping -> ModelSpec.  prompt: builds the PromptBuilder from a bundle's files; None for a family
    that can be planned and not run.
    merge_sites: where a reduction of visual tokens keeps their meaning.
    model_types: the `model_type` values of config.json that are this family.
    free_tiles: whether tiles may lie anywhere on the image; otherwise a family cuts its images by its own rules.
    chosen_tiles: whether some tiles of the family's grid may be shown without the others (see TokenGeometry.scales).
    reducible: whether views may have any number of tokens; false where number and order are fixed in the prompt.
    dialects: how it writes boxes and points; the first in which an answer holds any is taken.
    """

    name: str
    spec: Callable[[Mapping[str, Any]], ModelSpec]
    prompt: Callable[[Bundle], PromptBuilder] | None
    merge_sites: frozenset[MergeSite]
    model_types: tuple[str, ...] = ()
    free_tiles: bool = False
    chosen_tiles: bool = False
    reducible: bool = False
    dialects: tuple[Dialect, ...] = COMMON


@dataclass(frozen=True)
class Backend:
    """What a folder under backends/ provides: how to start an encoder and a decoder from a bundle's files."""

    name: str
    encoder: Callable[[Path, str, int], EncoderRunner]
    engine: Callable[[Path, TextSpec, str, int, int], LlmEngine]
    """(graph, target, threads) -> encoder; (graph, text, target, threads, context) -> decoder."""

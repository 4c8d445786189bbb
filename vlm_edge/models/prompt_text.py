"""Questions to tokens, and tokens to embeddings and to text, with a bundle's tokenizer, chat template and table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.chat import MAX_PROMPT_CHARS
from vlm_edge.core.contracts import Floats
from vlm_edge.errors import BadInput, DamagedBundle
from vlm_edge.models import bundle_files

MAX_CHARS_PER_TOKEN = 64
"""A question of more characters for each token of context is refused unread: no tokenizer joins so many on average."""


class BundleText:
    """A bundle's TextCodec: tokenizer and table of embeddings."""

    def __init__(self, bundle: Bundle, tokenizer: Any, eos_ids: frozenset[int], *, scale: float = 1.0) -> None:
        """scale: by which embeddings of text are multiplied, as the decoder's own embedding layer does."""
        self._tokenizer = tokenizer
        self._table = bundle_files.embedding(bundle)
        self._scale = np.float32(scale)
        self.eos_ids = eos_ids

    @property
    def width(self) -> int:
        """Values of one embedding."""
        return self._table.shape[1]

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of a text by itself."""
        return _encoded(self._tokenizer, text, add_special_tokens=False)

    def embed(self, tokens: Sequence[int]) -> Floats:
        """Input embeddings [len(tokens), D]."""
        rows = self._table.rows(tokens)
        return rows if self._scale == 1 else rows * self._scale

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, control tokens left out."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


class Questions:
    """Fills a question into a chat template and tokenizes the result."""

    def __init__(self, bundle: Bundle, tokenizer: Any, image_id: int, *, template: str) -> None:
        """template: the family's own, for a bundle without one."""
        self._tokenizer = tokenizer
        self._template = bundle_files.template(bundle, template)
        self._image_id = image_id
        self.placeholder: str = tokenizer.id_to_token(image_id)
        self._special = {index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._special.add(image_id)
        self._special.discard(tokenizer.token_to_id("<unk>"))
        self._context = bundle.manifest.limits.max_model_len
        self.first_token = self._template.first_token

    def render(self, question: str, *, images: int) -> str:
        """The prompt's text, in which one placeholder stands for each image.

        Raises BadInput for a question that is empty, no text, far longer than the context, or holds control tokens.
        """
        self.check(question)
        content: list[dict[str, Any]] = [{"type": "image"}] * images + [{"type": "text", "text": question}]
        return self._template.render([{"role": "user", "content": content}])

    def check(self, question: str) -> None:
        """Raise BadInput for a question that cannot be asked."""
        if not isinstance(question, str):
            raise BadInput(f"the question is a {type(question).__name__}, not a text", remedy="ask in words")
        # Before the template sees it: there, too much text is held against the template.
        if len(question) > min(MAX_CHARS_PER_TOKEN * self._context, MAX_PROMPT_CHARS // 2):
            raise BadInput(
                f"the question has {len(question)} characters, more than this bundle's context of {self._context} tokens holds",
                remedy="ask a shorter question",
            )
        if not question.strip():
            raise BadInput(
                "the question is empty", remedy='ask something, as in: vlm-edge run page.png "what is the total?"'
            )
        if any("\ud800" <= character <= "\udfff" for character in question):
            raise BadInput(
                "the question is not valid UTF-8", remedy="type it again, or set the terminal's encoding to UTF-8"
            )
        held = self._special.intersection(self.encode(question))
        if held:
            token = self._tokenizer.id_to_token(min(held))
            raise BadInput(f"the question holds the control token {token}", remedy="leave that token out")

    def expand(self, text: str, images: Sequence[str]) -> str:
        """A prompt's text with each placeholder replaced by the text that stands for its image."""
        pieces = text.split(self.placeholder)
        if len(pieces) != len(images) + 1:
            raise DamagedBundle("the chat template does not place every image once", remedy=bundle_files.REBUILD)
        return pieces[0] + "".join(image + piece for image, piece in zip(images, pieces[1:], strict=True))

    def encode_prompt(self, text: str, *, runs: int, plain: bool = False) -> tuple[int, ...]:
        """Tokens of a whole prompt; a text without the first token gets what the tokenizer puts around texts.

        runs: placeholders that must come out.  plain: add nothing in any case.
        """
        begun = bool(self.first_token) and text.startswith(self.first_token)
        ids = self.encode(text, add_special_tokens=not (plain or begun))
        if ids.count(self._image_id) != runs:
            raise DamagedBundle("the tokenizer does not keep the images' places", remedy=bundle_files.REBUILD)
        return ids

    def encode(self, text: str, *, add_special_tokens: bool = False) -> tuple[int, ...]:
        """Tokens of a text."""
        return _encoded(self._tokenizer, text, add_special_tokens=add_special_tokens)


def _encoded(tokenizer: Any, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
    try:
        return tuple(tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
    except Exception as cause:  # its errors share no class of their own
        raise DamagedBundle(f"the tokenizer cannot read a text: {cause}", remedy=bundle_files.REBUILD) from cause


def counter(tokenizer: Any) -> Callable[[str], int]:
    """The number of tokens of a text by itself."""
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)

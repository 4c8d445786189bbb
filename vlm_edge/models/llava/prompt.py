"""From views and a question to a LLaVA decoder's input embeddings, without torch or transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.chat import MAX_PROMPT_CHARS
from vlm_edge.core.contracts import Floats, TextDecoder
from vlm_edge.errors import BadInput, DamagedBundle
from vlm_edge.models.llava import files

MAX_CHARS_PER_TOKEN = 64
"""A question of more characters for each token of context is refused unread: no tokenizer joins so many on average."""


class TokenizerText:
    """Decoding with the bundle's tokenizer."""

    def __init__(self, tokenizer: Any, eos_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_ids = eos_ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, control tokens left out."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


class LlavaPrompt:
    """The family's PromptBuilder."""

    text: TextDecoder
    image_id: int

    def __init__(self, bundle: Bundle) -> None:
        """Raises DamagedBundle for files that cannot be read or contradict the manifest."""
        self._tokenizer = files.tokenizer(bundle)
        self._view_ids = files.view_ids(bundle, self._tokenizer)
        files.check_sizes(bundle, markers=bool(self._view_ids))
        self._template = files.template(bundle)
        self._table = files.embedding(bundle)
        self._mean, self._std = files.normalisation(bundle)
        self.image_id = files.image_id(bundle, self._tokenizer)
        self.text = TokenizerText(self._tokenizer, files.end_ids(bundle))
        self._special = {index for index, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        self._context = bundle.manifest.limits.max_model_len

    def pixels(self, views: Sequence[NDArray[np.uint8]]) -> Floats:
        """Scale to 0..1, normalise by the checkpoint's mean and std, channels first."""
        stacked = np.stack(views).astype(np.float32) / np.float32(255)
        normal = (stacked - self._mean) / self._std
        return np.ascontiguousarray(normal.transpose(0, 3, 1, 2))

    def tokens(self, question: str, *, images: int) -> tuple[int, ...]:
        """Fill in the chat template and tokenize; raises BadInput for a question that cannot be asked.

        That is one which is empty, no text, far longer than the context, or holds control tokens.
        """
        self._check(question)
        held = self._special.intersection(self._encode(question))
        unknown = self._tokenizer.token_to_id("<unk>")
        if held - {unknown}:
            token = self._tokenizer.id_to_token(min(held - {unknown}))
            raise BadInput(f"the question holds the control token {token}", remedy="leave that token out")
        content: list[dict[str, Any]] = [{"type": "image"}] * images + [{"type": "text", "text": question}]
        ids = self._encode(self._template.render([{"role": "user", "content": content}]))
        if ids.count(self.image_id) != images:
            raise DamagedBundle("the chat template does not place every image once", remedy=files.REBUILD)
        return ids

    def _check(self, question: str) -> None:
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

    def _encode(self, text: str) -> tuple[int, ...]:
        try:
            return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)
        except Exception as cause:  # its errors share no class of their own
            raise DamagedBundle(f"the tokenizer cannot read a text: {cause}", remedy=files.REBUILD) from cause

    def splice(self, tokens: Sequence[int], images: Sequence[Sequence[Floats]]) -> Floats:
        """Look up text tokens, and put each image's views, each after its marker, where the placeholder stands."""
        waiting = iter(images)
        parts: list[Floats] = []
        for token in tokens:
            if token != self.image_id:
                parts.append(self._table.rows([token]))
                continue
            for i, view in enumerate(next(waiting)):
                if self._view_ids:
                    parts.append(self._table.rows([self._view_ids[min(i, len(self._view_ids) - 1)]]))
                if view.shape[1] != self._table.shape[1]:
                    why = f"the vision graph gives vectors of {view.shape[1]}, the decoder takes {self._table.shape[1]}"
                    raise DamagedBundle(why, remedy=files.REBUILD)
                parts.append(view)
        return np.concatenate(parts)

"""From views and a question to a LLaVA decoder's input embeddings, without torch or transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.chat import ChatTemplate
from vlm_edge.core.contracts import Floats, TextDecoder
from vlm_edge.core.embedding import EmbeddingTable
from vlm_edge.errors import BadInput, DamagedBundle


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
        from tokenizers import Tokenizer

        config, images = _read_json(bundle, "config"), _read_json(bundle, "preprocessor_config")
        generation = _read_json(bundle, "generation_config")
        try:
            self._tokenizer = Tokenizer.from_file(str(bundle.path("tokenizer")))
        except Exception as cause:
            raise DamagedBundle(f"tokenizer.json cannot be read: {cause}", remedy="build the bundle again") from cause
        template = bundle.path("chat_template").read_text("utf-8")
        self._template = ChatTemplate(template, _read_json(bundle, "tokenizer_config"))
        self._table = EmbeddingTable(bundle.path("llm.embedding"))
        try:
            self._mean, self._std = (
                np.array(images[f"image_{name}"], np.float32).reshape(3) for name in ("mean", "std")
            )
            self.image_id = int(config["image_token_index"])
            eos = generation["eos_token_id"]
            self.text = TokenizerText(
                self._tokenizer, frozenset(int(i) for i in (eos if isinstance(eos, list) else [eos]))
            )
            self._view_ids = [self._id(str(token)) for token in bundle.manifest.recipe.get("view_tokens", ())]
        except (KeyError, TypeError, ValueError) as cause:
            raise DamagedBundle(
                f"the bundle's configuration lacks something: {cause!r}", remedy="build the bundle again"
            ) from cause
        self._special = {index for index, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}

    def _id(self, token: str) -> int:
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise DamagedBundle(f"the tokenizer has no token {token!r}", remedy="build the bundle again")
        return int(index)

    def pixels(self, views: Sequence[NDArray[np.uint8]]) -> Floats:
        """Scale to 0..1, normalise by the checkpoint's mean and std, channels first."""
        stacked = np.stack(views).astype(np.float32) / np.float32(255)
        normal = (stacked - self._mean) / self._std
        return np.ascontiguousarray(normal.transpose(0, 3, 1, 2))

    def tokens(self, question: str, *, images: int) -> tuple[int, ...]:
        """Fill in the chat template and tokenize; raises BadInput for an empty question or one with control tokens."""
        if not question.strip():
            raise BadInput(
                "the question is empty", remedy='ask something, as in: vlm-edge run page.png "what is the total?"'
            )
        if any("\ud800" <= character <= "\udfff" for character in question):
            raise BadInput(
                "the question is not valid UTF-8", remedy="type it again, or set the terminal's encoding to UTF-8"
            )
        held = self._special.intersection(self._tokenizer.encode(question, add_special_tokens=False).ids)
        unknown = self._tokenizer.token_to_id("<unk>")
        if held - {unknown}:
            token = self._tokenizer.id_to_token(min(held - {unknown}))
            raise BadInput(f"the question holds the control token {token}", remedy="leave that token out")
        content: list[dict[str, Any]] = [{"type": "image"}] * images + [{"type": "text", "text": question}]
        text = self._template.render([{"role": "user", "content": content}])
        ids = tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)
        if ids.count(self.image_id) != images:
            raise DamagedBundle("the chat template does not place every image once", remedy="build the bundle again")
        return ids

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
                parts.append(view)
        return np.concatenate(parts)


def _read_json(bundle: Bundle, role: str) -> Any:
    path = bundle.path(role)
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as cause:
        raise DamagedBundle(f"{path.name} cannot be read: {cause}", remedy="build the bundle again") from cause

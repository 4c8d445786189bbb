"""Chat templates: text from a bundle that becomes a program, so it runs in a sandbox that meters it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_edge.errors import DamagedBundle

MAX_TEMPLATE_CHARS = 64 * 1024
MAX_PROMPT_CHARS = 1 << 20
_SURROGATES = re.compile("[\ud800-\udfff]")
_DISTRUST = "do not use this bundle"


class ChatTemplate:
    """A compiled template. Raises DamagedBundle when it does not compile, reaches for Python objects, fails or is endless.

    Not safe for use from two threads at once.
    """

    def __init__(self, source: str, tokenizer_config: Mapping[str, Any]) -> None:
        from vlm_edge.core.sandbox import MeteredEnvironment

        if len(source) > MAX_TEMPLATE_CHARS:
            raise DamagedBundle("the chat template is too long", remedy=_DISTRUST)
        self._environment = MeteredEnvironment()
        try:
            self._template = self._environment.from_string(source)
        except Exception as cause:  # a template can make Jinja2 and Python's compiler raise almost anything
            why = f"the chat template does not compile: {cause}"
            raise DamagedBundle(why, remedy="build the bundle again") from cause
        self._constants = special_tokens(tokenizer_config)

    @property
    def first_token(self) -> str:
        """The token that begins a text, as the tokenizer's configuration names it; empty where there is none."""
        return self._constants["bos_token"]

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt's text, ready for the answer to begin."""
        self._environment.steps = 0
        parts: list[str] = []
        chars = 0
        try:
            for part in self._template.generate(messages=messages, add_generation_prompt=True, **self._constants):
                parts.append(part)
                chars += len(part)
                if chars > MAX_PROMPT_CHARS:
                    break
        except Exception as cause:  # it is a program, and may fail in any way
            raise DamagedBundle(f"the chat template failed: {cause}", remedy=_DISTRUST) from cause
        if chars > MAX_PROMPT_CHARS:
            raise DamagedBundle("the chat template made an endless prompt", remedy=_DISTRUST)
        text = "".join(parts)
        if _SURROGATES.search(text):
            raise DamagedBundle("the chat template made half a character", remedy=_DISTRUST)
        return text


def special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by the names under which templates know them; the first and the last token are empty where there is none."""
    extra = tokenizer_config.get("extra_special_tokens")
    named = {**tokenizer_config, **(extra if isinstance(extra, Mapping) else {})}
    tokens = {
        name: _text(token)
        for name, token in named.items()
        if name.endswith("_token") and isinstance(token, str | Mapping)
    }
    return {"bos_token": "", "eos_token": "", **tokens}


def _text(token: Any) -> str:
    """A special token, which tokenizer_config.json has as text, as a mapping with its content, or as null."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return "" if token is None else str(token)

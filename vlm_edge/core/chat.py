"""Chat templates: text from a bundle that becomes a program, so it runs in Jinja2's immutable sandbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from vlm_edge.errors import DamagedBundle

MAX_TEMPLATE_CHARS = 64 * 1024
MAX_PROMPT_CHARS = 1 << 20


class ChatTemplate:
    """A compiled template. Raises DamagedBundle when it does not compile, reaches for Python objects, or fails."""

    def __init__(self, source: str, tokenizer_config: Mapping[str, Any]) -> None:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        if len(source) > MAX_TEMPLATE_CHARS:
            raise DamagedBundle("the chat template is too long", remedy="do not use this bundle")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals.clear()
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError) as cause:
            raise DamagedBundle(
                f"the chat template does not compile: {cause}", remedy="build the bundle again"
            ) from cause
        self._constants = {name: str(tokenizer_config.get(name, "")) for name in ("bos_token", "eos_token")}

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt's text, ready for the answer to begin."""
        from jinja2 import TemplateError

        try:
            text = self._template.render(messages=messages, add_generation_prompt=True, **self._constants)
        except (
            TemplateError,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            RecursionError,
            MemoryError,
        ) as cause:
            raise DamagedBundle(f"the chat template failed: {cause}", remedy="do not use this bundle") from cause
        if len(text) > MAX_PROMPT_CHARS:
            raise DamagedBundle("the chat template made an endless prompt", remedy="do not use this bundle")
        return text


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)

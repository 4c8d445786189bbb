"""Idefics3's and SmolVLM's prompt: each view behind a marker that names its row and column, the whole image last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.contracts import Floats
from vlm_edge.core.geometry import ImageLayout
from vlm_edge.core.specs import ModelSpec
from vlm_edge.models.idefics3.images import ImageSettings, marker_texts, prepare, settings_from, with_markers
from vlm_edge.models.idefics3.spec import spec_from_config
from vlm_edge.models.prompt_text import counter
from vlm_edge.models.prompts import FamilyPrompt, FamilyRules

DEFAULT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message.role | capitalize }}"
    "{% if message.content[0].type == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message.content %}{% if part.type == 'image' %}{{ '<image>' }}{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{{ '<end_of_utterance>\n' }}{% endfor %}{{ 'Assistant:' }}"
)
"""The form of SmolVLM's checkpoints."""


def counted(settings: ImageSettings, _spec: ModelSpec, tokenizer: Any) -> ImageSettings:
    """The settings with markers as long as the tokenizer makes them."""
    return (
        settings
        if tokenizer is None
        else replace(settings, geometry=with_markers(settings.geometry, counter(tokenizer)))
    )


RULES = FamilyRules(spec_from_config, settings_from, prepare, DEFAULT_TEMPLATE, counted)


class Idefics3Prompt(FamilyPrompt):
    """Each view is a run of its own, since text stands between them."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises DamagedBundle for files that cannot be read or contradict the manifest."""
        super().__init__(bundle, RULES)

    def image_text(self, image: ImageLayout) -> str:
        """Markers and runs in turn."""
        return self.questions.placeholder.join(marker_texts(image))

    def runs(self, views: Sequence[Floats], image: ImageLayout) -> list[Floats]:  # noqa: ARG002
        """The views."""
        return [self.fitting(view) for view in views]

"""Idefics2's prompt: each view between two markers, of which neighbours share one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.contracts import Floats
from vlm_edge.core.geometry import ImageLayout
from vlm_edge.models.idefics2.images import prepare, settings_from
from vlm_edge.models.idefics2.spec import spec_from_config
from vlm_edge.models.prompts import FamilyPrompt, FamilyRules

AROUND = "<fake_token_around_image>"
_WORD_AFTER = re.compile(rf"{re.escape(AROUND)}(?=[^\s<])")
DEFAULT_TEMPLATE = (
    "{% for message in messages %}{{ message.role.capitalize() }}"
    "{% if message.content[0].type == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message.content %}{% if part.type == 'image' %}{{ '<image>' }}{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{{ '<end_of_utterance>\n' }}{% endfor %}{{ 'Assistant:' }}"
)
"""The form of Idefics2's checkpoints."""
RULES = FamilyRules(spec_from_config, settings_from, prepare, DEFAULT_TEMPLATE)


class Idefics2Prompt(FamilyPrompt):
    """Each view is a run of its own."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises DamagedBundle for files that cannot be read or contradict the manifest."""
        super().__init__(bundle, RULES)

    def image_text(self, image: ImageLayout) -> str:
        """Every view with both of its markers; `finished` takes out those that stand twice."""
        return f"{AROUND}{self.questions.placeholder}{AROUND}" * image.views

    def finished(self, text: str) -> str:
        """Views and images that follow each other share a marker; a word behind a marker is set apart from it."""
        return _WORD_AFTER.sub(f"{AROUND} ", text.replace(AROUND + AROUND, AROUND))

    def runs(self, views: Sequence[Floats], image: ImageLayout) -> list[Floats]:  # noqa: ARG002
        """The views."""
        return [self.fitting(view) for view in views]

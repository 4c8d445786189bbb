"""InternVL's prompt: tiles and then the thumbnail, all between one pair of markers."""

from __future__ import annotations

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.geometry import ImageLayout
from vlm_edge.models.internvl.images import prepare, settings_from
from vlm_edge.models.internvl.spec import spec_from_config
from vlm_edge.models.prompts import FamilyPrompt, FamilyRules

START, END = "<img>", "</img>"
DEFAULT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}"
)
"""The form of InternVL's checkpoints for transformers."""
RULES = FamilyRules(spec_from_config, settings_from, prepare, DEFAULT_TEMPLATE)


class InternvlPrompt(FamilyPrompt):
    """All views of an image are one run."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises DamagedBundle for files that cannot be read or contradict the manifest."""
        super().__init__(bundle, RULES)

    def image_text(self, image: ImageLayout) -> str:
        """The run between its markers."""
        return f"{START}{super().image_text(image)}{END}"

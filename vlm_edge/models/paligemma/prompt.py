"""PaliGemma's prompt: the images, the first token, the question and a line break, without a chat template."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.geometry import ImageLayout
from vlm_edge.models.paligemma.images import prepare, settings_from
from vlm_edge.models.paligemma.spec import spec_from_config
from vlm_edge.models.prompts import FamilyPrompt, FamilyRules

RULES = FamilyRules(spec_from_config, settings_from, prepare, "")


class PaligemmaPrompt(FamilyPrompt):
    """Image features enter as the projector gives them; text is scaled by Gemma's embedding layer, which is the host's work."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises DamagedBundle for files that cannot be read or contradict the manifest."""
        super().__init__(bundle, RULES, scale=math.sqrt(bundle.manifest.model.text.hidden))

    def tokens(self, question: str, images: Sequence[ImageLayout]) -> tuple[int, ...]:
        """The checkpoint's chat template is not asked: transformers' processor does not either."""
        self.questions.check(question)
        text = self.questions.placeholder * len(images) + f"{self.questions.first_token}{question}\n"
        # Consecutive placeholders tokenize alike in any number, so here each stands for one image.
        return self.questions.encode_prompt(text, runs=len(images), plain=True)

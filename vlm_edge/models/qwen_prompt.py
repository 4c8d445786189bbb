"""What the prompts of Qwen2-VL and Qwen2.5-VL share: a template with markers around images, positions of three parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlm_edge.core.contracts import Floats, Positions, Span
from vlm_edge.core.geometry import ImageLayout
from vlm_edge.models.packed_patches import chosen_tokens
from vlm_edge.models.prompts import FamilyPrompt

START, END = "<|vision_start|>", "<|vision_end|>"
DEFAULT_TEMPLATE = (
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' }}{% for part in message.content %}{% if part.type == 'image' %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}"
)
"""The form of the published checkpoints."""


class QwenPrompt(FamilyPrompt):
    """An image is one run, between markers that the template places; with chosen tiles it is two, an overview and the tiles."""

    def image_text(self, image: ImageLayout) -> str:
        """A placeholder, or one for each part, with the markers that end one image and begin the next between them."""
        return f"{END}{START}".join([self.questions.placeholder] * max(1, len(image.parts)))

    def runs(self, views: Sequence[Floats], image: ImageLayout) -> list[Floats]:
        """The parts' tokens apart."""
        (tokens,) = super().runs(views, image)
        ends = np.cumsum([part.visual_tokens for part in image.parts[:-1]])
        return list(np.split(tokens, ends))

    def positions(self, spans: Sequence[Span]) -> Positions:
        """Time, row and column of every token; see rope_positions."""
        return rope_positions(spans)


def rope_positions(spans: Sequence[Span]) -> Positions:
    """int64 [3, L]: text counts on in all three parts, an image's tokens stand at one time and in rows and columns.

    Text behind an image goes on from the image's larger side, not from its number of tokens.
    Example: 2 of text, an image of 2 x 3, 1 of text -> time 0 1 2 2 2 2 2 2 5, rows 0 1 2 2 2 3 3 3 5, columns 0 1 2 3 4 2 3 4 5.
    """
    parts = []
    start = 0
    for length, image in spans:
        if image is None:
            parts.append(np.broadcast_to(np.arange(start, start + length), (3, length)))
            start += length
            continue
        rows, cols = np.indices(image.token_grid).reshape(2, -1)
        if (chosen := chosen_tokens(image)) is not None:  # at the places that they have in the whole image
            rows, cols = rows[chosen], cols[chosen]
        parts.append(start + np.stack([np.zeros_like(rows), rows, cols]))
        start += max(image.token_grid)
    return np.concatenate(parts, axis=1).astype(np.int64) if parts else np.empty((3, 0), np.int64)

"""LLaVA-NeXT's prompt: the whole image, then its tiles as one grid without padding, each row of which ends in a newline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.contracts import Floats
from vlm_edge.core.geometry import ImageLayout
from vlm_edge.core.specs import ModelSpec
from vlm_edge.errors import BadInput
from vlm_edge.models import bundle_files
from vlm_edge.models.llava_next.images import ImageSettings, prepare, settings_from
from vlm_edge.models.llava_next.spec import spec_from_config
from vlm_edge.models.prompts import FamilyPrompt, FamilyRules

DEFAULT_TEMPLATE = (
    "{% for message in messages %}[INST] {% for part in message.content %}"
    "{% if part.type == 'image' %}{{ '<image>\n' }}{% else %}{{ part.text }}{% endif %}{% endfor %} [/INST]{% endfor %}"
)
"""The form of LLaVA-1.6 with Mistral, as transformers documents it, for checkpoints without a template."""


def gridded(settings: ImageSettings, spec: ModelSpec, _tokenizer: Any) -> ImageSettings:
    """The settings themselves; raises BadInput where the features of a view make no grid that tiles could be joined to."""
    if spec.geometry.grid != settings.geometry.grid:
        raise BadInput(
            f"config.json: vision_feature_select_strategy leaves {spec.geometry.tokens_per_view} tokens of a view, which are no "
            f"grid of {settings.geometry.grid[0]} x {settings.geometry.grid[1]}",
            remedy="correct the checkpoint's config.json: `default` drops the class token",
        )
    return settings


RULES = FamilyRules(spec_from_config, settings_from, prepare, DEFAULT_TEMPLATE, gridded)


class LlavaNextPrompt(FamilyPrompt):
    """An image is one run, since its newlines are learned vectors and no tokens."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises DamagedBundle for files that cannot be read or contradict the manifest."""
        super().__init__(bundle, RULES)
        self._newline = bundle_files.newline(bundle)

    def runs(self, views: Sequence[Floats], image: ImageLayout) -> list[Floats]:
        """The base view, then rows over all tiles; a base view without tiles ends in one newline."""
        base, *tiles = (self.fitting(view) for view in views)
        if not tiles:
            return [np.concatenate([base, self._newline])]
        rows, cols = self.views.geometry.grid
        width = base.shape[1]
        grid = np.stack(tiles).reshape(image.rows, image.cols, rows, cols, width).transpose(0, 2, 1, 3, 4)
        grid = grid.reshape(image.rows * rows, image.cols * cols, width)
        top, left = ((all_ - kept) // 2 for all_, kept in zip(grid.shape, image.token_grid, strict=False))
        kept = grid[top : top + image.token_grid[0], left : left + image.token_grid[1]]
        ends = np.broadcast_to(self._newline, (len(kept), 1, width))
        return [np.concatenate([base, np.concatenate([kept, ends], axis=1).reshape(-1, width)])]

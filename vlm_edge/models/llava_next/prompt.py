"""LLaVA-NeXT's prompt: the whole image, then its tiles as one grid without padding, each row of which ends in a newline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.contracts import Floats
from vlm_edge.core.geometry import AnyResGeometry, ImageLayout
from vlm_edge.core.layout import Cell
from vlm_edge.core.specs import ModelSpec
from vlm_edge.errors import BadInput
from vlm_edge.models import bundle_files
from vlm_edge.models.llava_next.images import ImageSettings, prepare, settings_from
from vlm_edge.models.llava_next.spec import spec_from_config
from vlm_edge.models.prompts import FamilyPrompt, FamilyRules
from vlm_edge.tokens.positions import DROPPED

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
        self._geometry = cast("AnyResGeometry", self.views.geometry)

    def runs(self, views: Sequence[Floats], image: ImageLayout) -> list[Floats]:
        """The base view, then rows over the tiles that are shown; a base view without tiles ends in one newline."""
        base, *tiles = (self.fitting(view) for view in views)
        if not tiles:
            return [np.concatenate([base, self._newline])]
        cells = list(zip(image.shown_cells, tiles, strict=True))
        rows = (self._row(image, [cell for cell in cells if cell[0][0] == row]) for row in range(image.rows))
        return [np.concatenate([base, *rows])]

    def reduced_runs(
        self, views: Sequence[Floats], image: ImageLayout, members: Sequence[NDArray[np.int32]]
    ) -> list[Floats]:
        """As runs, row by row over each row of tiles: a token stands at the first of its places that is no padding.

        A newline ends each row of places in which any token stands.
        """
        base, *tiles = (self.fitting(view) for view in views)
        if not tiles:
            return [np.concatenate([base, self._newline])]
        parts = [base]
        found = list(zip(image.shown_cells, tiles, members[1:], strict=True))
        for row in range(image.rows):
            tokens, places = [self._newline[:0]], [np.empty(0, np.int64)]
            for cell, features, owners in found:
                if cell[0] == row:
                    x0, y0, x1, y1 = self._geometry.kept_window(image, cell)
                    owner, first = np.unique(owners.reshape(self._geometry.grid)[y0:y1, x0:x1], return_index=True)
                    first, owner = first[owner != DROPPED], owner[owner != DROPPED]
                    order = np.argsort(first)
                    tokens.append(features[owner[order]])
                    places.append(first[order] // max(1, x1 - x0) + y0)
            line, joined = np.concatenate(places), np.concatenate(tokens)
            for number in np.unique(line):
                parts += [joined[line == number], self._newline]
        return [np.concatenate(parts)]

    def _row(self, image: ImageLayout, cells: Sequence[tuple[Cell, Floats]]) -> Floats:
        """Tiles side by side without their padding, and a newline behind each row of tokens; nothing where no tile is."""
        parts = []
        for cell, tokens in cells:
            x0, y0, x1, y1 = self._geometry.kept_window(image, cell)
            parts.append(tokens.reshape(*self._geometry.grid, -1)[y0:y1, x0:x1])
        if not parts:
            return self._newline[:0]
        width = self._newline.shape[1]
        ends = np.broadcast_to(self._newline, (len(parts[0]), 1, width))
        return np.concatenate([*parts, ends], axis=1).reshape(-1, width)

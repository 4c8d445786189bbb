"""From views and a question to a LLaVA decoder's input embeddings, without torch or transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.contracts import Floats
from vlm_edge.core.geometry import ImageLayout
from vlm_edge.core.specs import ModelSpec
from vlm_edge.errors import DamagedBundle
from vlm_edge.models.bundle_files import REBUILD
from vlm_edge.models.llava.images import ImageSettings, prepare, settings_from
from vlm_edge.models.llava.spec import spec_from_config
from vlm_edge.models.prompts import FamilyPrompt, FamilyRules

DEFAULT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}USER: {% for part in message.content %}"
    "{% if part.type == 'image' %}{{ '<image>\n' }}{% else %}{{ part.text }}{% endif %}"
    "{% endfor %} ASSISTANT:{% endfor %}"
)
"""LLaVA-1.5's form of one question, as its authors document it, for checkpoints without a template."""


def with_features(settings: ImageSettings, spec: ModelSpec, _tokenizer: Any) -> ImageSettings:
    """The settings with the tokens that the checkpoint keeps of a view; with its class token they make no square."""
    return replace(settings, geometry=replace(settings.geometry, grid=spec.geometry.grid))


RULES = FamilyRules(spec_from_config, settings_from, prepare, DEFAULT_TEMPLATE, with_features)


class LlavaPrompt(FamilyPrompt):
    """Views one after another, each behind its marker where the model was trained with markers."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises DamagedBundle for files that cannot be read or contradict the manifest."""
        super().__init__(bundle, RULES)
        self._markers = self.text.embed(_marker_ids(_view_tokens(bundle), self.tokenizer))

    def completed(self, bundle: Bundle, settings: ImageSettings) -> ImageSettings:
        """With the place that a view's marker takes."""
        marked = int(bool(_view_tokens(bundle)))
        return replace(settings, geometry=replace(settings.geometry, separator_tokens=marked))

    def runs(self, views: Sequence[Floats], image: ImageLayout) -> list[Floats]:
        """One run; the first marker is that of the global view, the last one that of all further views."""
        if not len(self._markers):
            return super().runs(views, image)
        last = len(self._markers) - 1
        marked = [(self._markers[min(i, last)][None], view) for i, view in enumerate(views)]
        return super().runs([part for pair in marked for part in pair], image)


def _view_tokens(bundle: Bundle) -> Sequence[str]:
    """Markers of the global view and of the tiles; empty for a model that was trained without."""
    named = bundle.manifest.recipe.get("view_tokens", ())
    if not isinstance(named, list | tuple) or not all(isinstance(token, str) for token in named):
        raise DamagedBundle("the manifest's view_tokens are no list of tokens", remedy=REBUILD)
    return named


def _marker_ids(named: Sequence[str], tokenizer: Any) -> list[int]:
    for token in named:
        if tokenizer.token_to_id(token) is None:
            raise DamagedBundle(f"the tokenizer has no token {token[:60]!r}", remedy=REBUILD)
    return [int(tokenizer.token_to_id(token)) for token in named]

"""The way from an image and a question to a decoder's input, as far as it is the same in every family.

Runs of the placeholder tokenize alike however long they are, so one placeholder stands for a whole run of visual tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.contracts import Floats, Positions, Span, TextCodec, ViewMaker
from vlm_edge.core.geometry import ImageLayout, TokenGeometry
from vlm_edge.core.image_inputs import ImageInputs
from vlm_edge.core.specs import ModelSpec
from vlm_edge.errors import DamagedBundle
from vlm_edge.models import bundle_files
from vlm_edge.models.preprocessor import ViewSettings
from vlm_edge.models.prompt_text import BundleText, Questions
from vlm_edge.vision.raster import Picture

Config = Mapping[str, Any]
IMAGE_IDS = ("image_token_id", "image_token_index")
"""Where config.json has the placeholder, in newer files and in older ones."""


@dataclass(frozen=True)
class FamilyRules:
    """A family's readers of a checkpoint's files, and its own prompt.

    spec, settings, prepare: of the family's spec.py and images.py; prepare takes an image, settings, and for families whose
    tiles may be chosen a layout.  template: the chat template of checkpoints without one.
    refine: settings as the model's sizes and, where it is at hand, its tokenizer complete them; may raise BadInput.
    """

    spec: Callable[[Config], ModelSpec]
    settings: Callable[[Config, Config], Any]
    prepare: Callable[..., ImageInputs]
    template: str
    refine: Callable[[Any, ModelSpec, Any | None], Any] = lambda settings, _spec, _tokenizer: settings


class FamilyViews:
    """A family's preprocessing with the settings of one bundle."""

    geometry: TokenGeometry

    def __init__(self, rules: FamilyRules, settings: ViewSettings[Any]) -> None:
        self.geometry = settings.geometry
        self._rules = rules
        self._settings = settings
        self._whole = replace(settings, geometry=settings.geometry.whole())

    def prepare(self, image: Picture, *, whole: bool = False, layout: ImageLayout | None = None) -> ImageInputs:
        """An image -> the encoder's arrays by the family's own rules; whole: in one view, without tiles; or by a layout."""
        if layout is not None:
            return self._rules.prepare(image, self._settings, layout)
        return self._rules.prepare(image, self._whole if whole else self._settings)

    def pixels(self, views: Sequence[NDArray[np.uint8]]) -> Floats:
        """Views uint8 [S, S, 3] each -> normalised pixels [V, 3, S, S]."""
        return self._settings.pixels.stack(list(views))


class FamilyPrompt:
    """A PromptBuilder in which an image is one run: all of its views, one after another, without text between them.

    Families differ in `image_text`, `finished` and `runs`.
    """

    views: ViewMaker
    text: TextCodec
    image_id: int

    def __init__(self, bundle: Bundle, rules: FamilyRules, *, scale: float = 1.0) -> None:
        """scale: see BundleText.

        Raises DamagedBundle for files that cannot be read or contradict the manifest.
        """
        config = bundle_files.read_object(bundle, "config")
        tokenizer = bundle_files.tokenizer(bundle)
        told = bundle_files.settings(rules.spec, config)
        settings = bundle_files.settings(
            rules.settings, config, bundle_files.read_object(bundle, "preprocessor_config")
        )
        settings = self.completed(bundle, bundle_files.settings(rules.refine, settings, told, tokenizer))
        bundle_files.check_sizes(bundle, told, settings.geometry)
        self.tokenizer = tokenizer
        self.views = FamilyViews(rules, settings)
        self.image_id = bundle_files.image_id(config, tokenizer, *IMAGE_IDS)
        self.text = self._codec = BundleText(bundle, tokenizer, bundle_files.end_ids(bundle, config), scale=scale)
        self.questions = Questions(bundle, tokenizer, self.image_id, template=rules.template)

    def tokens(self, question: str, images: Sequence[ImageLayout]) -> tuple[int, ...]:
        """The chat template filled in and tokenized, with a placeholder for each run of each image."""
        texts = [self.image_text(image) for image in images]
        text = self.questions.expand(self.questions.render(question, images=len(images)), texts)
        return self.questions.encode_prompt(
            self.finished(text), runs=sum(image.count(self.questions.placeholder) for image in texts)
        )

    def completed(self, bundle: Bundle, settings: Any) -> Any:  # noqa: ARG002
        """The settings with what a bundle's recipe adds to them."""
        return settings

    def image_text(self, image: ImageLayout) -> str:  # noqa: ARG002
        """What stands for an image in the prompt's text, with a placeholder for each run."""
        return self.questions.placeholder

    def finished(self, text: str) -> str:
        """A prompt's text, its images expanded, as it is tokenized."""
        return text

    def runs(self, views: Sequence[Floats], image: ImageLayout) -> list[Floats]:  # noqa: ARG002
        """Features by view, [T, D] each -> the embeddings of each run of the image."""
        return [np.concatenate([self.fitting(view) for view in views])]

    def reduced_runs(
        self,
        views: Sequence[Floats],
        image: ImageLayout,
        members: Sequence[NDArray[np.int32]],  # noqa: ARG002
    ) -> list[Floats]:
        """The same for views whose tokens were reduced; members: for each view, the token that each of its places went to."""
        return self.runs(views, image)

    def fitting(self, view: Floats) -> Floats:
        """The features themselves; raises DamagedBundle when they are not as wide as the decoder's embeddings."""
        if view.shape[-1] != self._codec.width:
            why = f"the vision graph gives vectors of {view.shape[-1]}, the decoder takes {self._codec.width}"
            raise DamagedBundle(why, remedy=bundle_files.REBUILD)
        return view

    def positions(self, spans: Sequence[Span]) -> Positions | None:  # noqa: ARG002
        """None: the decoder counts its tokens itself."""
        return None

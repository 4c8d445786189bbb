"""A LLaVA-NeXT config.json -> ModelSpec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_edge.core.specs import ModelSpec
from vlm_edge.models.fields import Fields
from vlm_edge.models.llava_like import DEFAULTS, llava_like_spec

MODEL_TYPES = ("llava_next",)


def spec_from_config(config: Mapping[str, Any]) -> ModelSpec:
    """Sizes and parameters of a LlavaNextForConditionalGeneration.

    `image_newline`, one vector of the decoder's width, is counted with the projector.  The geometry is that of one view;
    how many there are depends on the image.  Raises BadInput that names the field.
    """
    root = Fields(config, DEFAULTS)
    return llava_like_spec(root, family="llava_next", tied=root.flag("tie_word_embeddings"), stored_rows=1)

"""A LLaVA config.json -> ModelSpec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_edge.core.specs import ModelSpec
from vlm_edge.models.fields import Fields
from vlm_edge.models.llava_like import DEFAULTS, llava_like_spec

MODEL_TYPES = ("llava",)


def spec_from_config(config: Mapping[str, Any]) -> ModelSpec:
    """Sizes and parameters of a LlavaForConditionalGeneration.

    The projector reads hidden states, which stand before a tower's last norm: that norm and the pooling head behind it
    are not counted.  Raises BadInput that names the field.
    """
    root = Fields(config, DEFAULTS)
    own = root.part("text_config").with_defaults({"tie_word_embeddings": False})
    return llava_like_spec(
        root,
        family="llava",
        tied=root.flag("tie_word_embeddings") or own.flag("tie_word_embeddings"),
    )

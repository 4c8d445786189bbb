"""A LLaVA checkpoint's parts as torch modules, for export and as the reference that an export is checked against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

from vlm_edge.models.vision_towers import FeaturesAndProjector

PARTS = ("model.vision_tower", "model.multi_modal_projector")
"""What `VisionAndProjector` needs of the model, as models.weights.load_parts takes it."""


class VisionAndProjector(FeaturesAndProjector):
    """pixel_values [V, 3, S, S] -> image_features [V, P, Dl], as LLaVA feeds them to its decoder.

    The tower is CLIP, SigLIP or DINOv2. Strategy `default` drops the first position, the class token, of every layer.
    """

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        config = model.config
        super().__init__(
            model.model.vision_tower, model.model.multi_modal_projector, config.vision_feature_layer,
            drop_class=config.vision_feature_select_strategy == "default",
        )  # fmt: skip


def load_checkpoint(model_dir: Path) -> LlavaForConditionalGeneration:
    """The whole model in fp32, in evaluation mode."""
    return LlavaForConditionalGeneration.from_pretrained(model_dir, dtype=torch.float32).eval()


def text_model(model: LlavaForConditionalGeneration) -> Any:
    """The decoder alone, as the causal language model class of its own architecture."""
    decoder = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    state: Mapping[str, torch.Tensor] = {
        **{f"model.{name}": tensor for name, tensor in model.model.language_model.state_dict().items()},
        "lm_head.weight": model.lm_head.weight,
    }
    decoder.load_state_dict(dict(state))
    return decoder

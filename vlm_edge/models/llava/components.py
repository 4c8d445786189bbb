"""A LLaVA checkpoint's parts as torch modules, for export and as the reference that an export is checked against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration


class VisionAndProjector(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """pixel_values [B, 3, S, S] -> image_features [B, P, Dl], as LLaVA feeds them to its decoder."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.layer = model.config.vision_feature_layer
        self.drop_class = model.config.vision_feature_select_strategy == "default"

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """One hidden layer of the tower, the class token dropped, through the projector."""
        hidden = self.tower(pixel_values, output_hidden_states=True).hidden_states[self.layer]
        return self.projector(hidden[:, 1:] if self.drop_class else hidden)


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

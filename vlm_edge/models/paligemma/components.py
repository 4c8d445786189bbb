"""PaliGemma's SigLIP tower and linear projector as one torch module."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from transformers import PaliGemmaForConditionalGeneration

from vlm_edge.models.vision_towers import HiddenStates

PARTS = ("model.vision_tower", "model.multi_modal_projector")
"""What `VisionAndProjector` needs of the model, as models.weights.load_parts takes it."""


class VisionAndProjector(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """pixel_values [V, 3, S, S] -> image_features [V, (S / patch)^2, Dl]; all layers, the last norm, no class token."""

    axes: ClassVar = {"pixel_values": {0: "views"}}

    def __init__(self, model: PaliGemmaForConditionalGeneration) -> None:
        super().__init__()
        self.tower = HiddenStates(model.model.vision_tower, (-1,))
        self.norm = model.model.vision_tower.post_layernorm
        self.projector = model.model.multi_modal_projector

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Tower, norm, projector."""
        (hidden,) = self.tower(pixel_values)
        return self.projector(self.norm(hidden))

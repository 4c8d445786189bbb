"""InternVL's tower, pixel shuffle and projector as one torch module."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from transformers import InternVLForConditionalGeneration

from vlm_edge.errors import BadInput
from vlm_edge.models.vision_towers import HiddenStates

PARTS = ("model.vision_tower", "model.multi_modal_projector")
"""What `VisionAndProjector` needs of the model, as models.weights.load_parts takes it."""


class VisionAndProjector(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """pixel_values [V, 3, S, S] -> image_features [V, P / r^2, Dl]: r x r neighbours are joined before the projector.

    The projector reads patches as a grid, so a reduction may come only after it: tower and projector are one graph.
    """

    axes: ClassVar = {"pixel_values": {0: "views"}}

    def __init__(self, model: InternVLForConditionalGeneration) -> None:
        super().__init__()
        config = model.config
        tower = model.model.vision_tower
        self.tower = HiddenStates(tower, (config.vision_feature_layer,))
        # transformers norms the last layer's output, and no other's
        self.norm = tower.layernorm if config.vision_feature_layer == -1 else nn.Identity()
        self.drop_class = config.vision_feature_select_strategy == "default"
        patch = config.vision_config.patch_size
        self.grid = tuple(px // p for px, p in zip(config.vision_config.image_size, patch, strict=True))
        self.ratio = round(1 / config.downsample_ratio)
        if self.grid[0] != self.grid[1] or self.grid[0] % self.ratio:
            raise BadInput(
                f"a grid of {self.grid[0]}x{self.grid[1]} patches cannot be shuffled by {self.ratio}",
                remedy="correct image_size, patch_size or downsample_ratio in config.json",
            )
        self.projector = model.model.multi_modal_projector

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Tower, pixel shuffle, projector."""
        (hidden,) = self.tower(pixel_values)
        hidden = self.norm(hidden)
        return self.projector(self.shuffle(hidden[:, 1:] if self.drop_class else hidden))

    def shuffle(self, hidden: torch.Tensor) -> torch.Tensor:
        """[V, H * W, D] -> [V, H * W / r^2, r^2 * D]: a block's columns vary slower than its channels, its rows slowest."""
        rows, columns, ratio, width = self.grid[0], self.grid[1], self.ratio, hidden.shape[-1]
        blocks = hidden.reshape(-1, rows // ratio, ratio, columns // ratio, ratio, width).transpose(2, 3)
        return blocks.reshape(-1, rows * columns // ratio**2, ratio**2 * width)

"""Qwen2-VL's tower with its patch merger as a torch module over packed patches."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from transformers import Qwen2VLForConditionalGeneration

from vlm_edge.models.packed_vision import PackedBlock, PatchProjection, blocks

PARTS = ("model.visual",)
"""What `VisionAndProjector` needs of the model, as models.weights.load_parts takes it."""


class VisionAndProjector(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """Packed patches of one or more images -> image_features [T / m^2, Dl], m the merge size.

    pixel_values [T, C * t * p * p]; position_ids int64 [T, 2] (row and column of a patch, merge blocks together); cu_seqlens int
    [frames + 1], where images, and frames of one, begin and end.
    """

    axes: ClassVar = {
        "pixel_values": {0: "patches"},
        "position_ids": {0: "patches"},
        "cu_seqlens": {0: "segments"},
    }

    def __init__(self, model: Qwen2VLForConditionalGeneration) -> None:
        super().__init__()
        tower = model.model.visual
        self.patches = PatchProjection(tower.patch_embed.proj)
        self.rotary = tower.rotary_pos_emb
        self.blocks = nn.ModuleList(PackedBlock(block) for block in tower.blocks)
        self.merger = tower.merger

    def forward(self, pixel_values: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        """Patches, layers with full attention inside an image, merger."""
        hidden = self.patches(pixel_values)
        cos, sin = self.rotary(hidden, position_ids)
        segments = blocks(cu_seqlens, hidden)
        for block in self.blocks:
            hidden = block(hidden, cos, sin, segments)
        return self.merger(hidden)

"""Qwen2.5-VL's windowed tower with its patch merger as a torch module over packed patches."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from vlm_edge.models.packed_vision import PackedBlock, PatchProjection, blocks, windows

PARTS = ("model.visual",)
"""What `VisionAndProjector` needs of the model, as models.weights.load_parts takes it."""


class VisionAndProjector(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """Packed patches of one or more images -> image_features [T / m^2, Dl], m the merge size.

    pixel_values [T, C * t * p * p]; position_ids int64 [T, 2]; cu_seqlens int [frames + 1]; window_index int64 [T / m^2], the
    order that puts windows together; cu_window_seqlens int [windows + 1]. Windows at an edge may be smaller than the rest.
    """

    axes: ClassVar = {
        "pixel_values": {0: "patches"},
        "position_ids": {0: "patches"},
        "cu_seqlens": {0: "segments"},
        "window_index": {0: "merged"},
        "cu_window_seqlens": {0: "windows"},
    }

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration) -> None:
        super().__init__()
        tower = model.model.visual
        self.unit = tower.spatial_merge_unit
        side = tower.window_size // tower.spatial_merge_size // tower.patch_size * tower.spatial_merge_size
        self.largest_window = side**2
        self.full = frozenset(tower.fullatt_block_indexes)
        self.patches = PatchProjection(tower.patch_embed.proj)
        self.rotary = tower.rotary_pos_emb
        self.blocks = nn.ModuleList(PackedBlock(block) for block in tower.blocks)
        self.merger = tower.merger

    def forward(
        self,
        pixel_values: torch.Tensor,
        position_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        window_index: torch.Tensor,
        cu_window_seqlens: torch.Tensor,
    ) -> torch.Tensor:
        """Patches in the order of windows, layers, merger, back in the order of the image."""
        hidden = self.patches(pixel_values)
        cos, sin = self.rotary(hidden, position_ids)
        hidden, cos, sin = (self.in_windows(rows, window_index) for rows in (hidden, cos, sin))
        by_image, by_window = blocks(cu_seqlens, hidden), windows(cu_window_seqlens, hidden, self.largest_window)
        for number, block in enumerate(self.blocks):
            hidden = block(hidden, cos, sin, by_image if number in self.full else by_window)
        # The inverse order by scattering: sorting is a TopK, which TensorRT limits to 3,840 entries.
        inverse = torch.zeros_like(window_index).scatter(0, window_index, torch.arange(window_index.shape[0]))
        return self.merger(hidden).index_select(0, inverse)

    def in_windows(self, rows: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """[T, D] with merge blocks of m^2 rows put into another order."""
        return rows.unflatten(0, (-1, self.unit)).index_select(0, order).flatten(0, 1)

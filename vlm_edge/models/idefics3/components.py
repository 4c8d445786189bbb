"""The tower and connector of Idefics3 and SmolVLM as one torch module."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

PARTS = ("model.vision_model", "model.connector")
"""What `VisionAndProjector` needs of the model, as models.weights.load_parts takes it."""


class VisionAndProjector(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """pixel_values [V, 3, S, S] -> image_features [V, P / r^2, Dl]; `model` is Idefics3 or SmolVLM for generation.

    There is no `pixel_attention_mask`: the processor resizes every tile, and the global view, to S x S, so the mask that it
    makes is all ones, under which attention is full and position ids depend on S alone. They are computed once.
    """

    axes: ClassVar = {"pixel_values": {0: "views"}}

    def __init__(self, model: Any) -> None:
        super().__init__()
        tower = model.model.vision_model
        self.patches = tower.embeddings.patch_embedding
        self.positions = nn.Parameter(full_view_positions(tower), requires_grad=False)
        self.layers = tower.encoder.layers
        self.norm = tower.post_layernorm
        self.projector = model.model.connector

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Patches with their positions, layers, norm, connector."""
        hidden = self.patches(pixel_values).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            hidden = layer(hidden, None)
        return self.projector(self.norm(hidden))


def full_view_positions(tower: Any) -> torch.Tensor:
    """Position embeddings [P, D] of a view without padding, taken from the tower's own embedding layer.

    The layer buckets fractional coordinates in floating point, where a formula of ours could round otherwise.
    """
    side = tower.config.image_size
    like = tower.embeddings.patch_embedding.weight
    mask = torch.ones(1, side // tower.patch_size, side // tower.patch_size, dtype=torch.bool, device=like.device)
    seen: list[torch.Tensor] = []
    hook = tower.embeddings.position_embedding.register_forward_hook(lambda _module, _ids, table: seen.append(table))
    try:
        with torch.no_grad():
            tower.embeddings(pixel_values=like.new_zeros(1, like.shape[1], side, side), patch_attention_mask=mask)
    finally:
        hook.remove()
    return seen[0][0].detach()

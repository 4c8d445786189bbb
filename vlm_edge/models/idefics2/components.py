"""Idefics2's tower, modality projection and perceiver resampler as one torch module over views of any size."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from transformers import Idefics2ForConditionalGeneration

PARTS = ("model.vision_model", "model.connector")
"""What `VisionAndProjector` needs of the model, as models.weights.load_parts takes it."""


class VisionAndProjector(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """pixel_values [V, 3, H, W], pixel_attention_mask [V, H, W] (1 = image, 0 = padding) -> image_features [V, latents, Dl].

    Views keep their aspect ratio and are padded at the right and the bottom to the largest of the call. A patch counts when
    all of its pixels do. The mask decides positions and attention, so it is an input of the graph.
    """

    axes: ClassVar = {
        "pixel_values": {0: "views", 2: "height", 3: "width"},
        "pixel_attention_mask": {0: "views", 1: "height", 2: "width"},
    }

    def __init__(self, model: Idefics2ForConditionalGeneration) -> None:
        super().__init__()
        tower = model.model.vision_model
        connector = model.model.connector
        self.patch_px = tower.embeddings.patch_size
        self.patches = tower.embeddings.patch_embedding
        self.table = tower.embeddings.position_embedding
        side = tower.embeddings.num_patches_per_side
        self.side = side
        self.boundaries = nn.Parameter(torch.arange(1 / side, 1.0, 1 / side), requires_grad=False)
        self.layers = tower.encoder.layers
        self.norm = tower.post_layernorm
        self.projection = connector.modality_projection
        self.latents = connector.perceiver_resampler.latents
        self.resampler = connector.perceiver_resampler.layers
        self.last_norm = connector.perceiver_resampler.norm

    def forward(self, pixel_values: torch.Tensor, pixel_attention_mask: torch.Tensor) -> torch.Tensor:
        """Patches, layers, projection, then the latents attend to the patches that count."""
        patches = self.patches(pixel_values)
        padded = nn.functional.max_pool2d(1.0 - pixel_attention_mask[:, None].float(), self.patch_px)[:, 0]
        counted = padded < 0.5  # [V, h, w]
        hidden = patches.flatten(2).transpose(1, 2) + self.table(self.position_ids(counted))
        # A finite minimum: a row that masks everything stays a number in every runtime.
        bias = padded.flatten(1)[:, None, None] * torch.finfo(hidden.dtype).min
        for layer in self.layers:
            hidden = layer(hidden, bias)
        context = self.projection(self.norm(hidden))
        latents = self.latents.expand(context.shape[0], -1, -1)
        bias = torch.cat((bias, bias.new_zeros(context.shape[0], 1, 1, self.latents.shape[0])), dim=-1)
        for layer in self.resampler:
            latents = layer(latents, context, attention_mask=bias)
        return self.last_norm(latents)

    def position_ids(self, counted: torch.Tensor) -> torch.Tensor:
        """[V, h, w] -> [V, h * w]: a patch's place in its own view as a fraction, on the grid that was trained.

        Bucket i of an axis holds the fractions with i boundaries at or below them; padding gets position 0.
        """
        rows = self.buckets(counted[:, :, 0])
        columns = self.buckets(counted[:, 0, :])
        ids = rows[:, :, None] * self.side + columns[:, None, :]
        return (ids * counted).flatten(1)

    def buckets(self, counted: torch.Tensor) -> torch.Tensor:
        """One axis: which of its patches count [V, n] -> bucket of each [V, n]."""
        step = 1.0 / counted.sum(dim=1)
        places = torch.arange(counted.shape[1], device=counted.device, dtype=torch.float32)
        fractions = (places[None] * step[:, None]).clamp(max=1.0 - 1e-6)
        return (fractions[..., None] >= self.boundaries).sum(-1)

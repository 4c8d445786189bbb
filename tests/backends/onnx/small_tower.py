"""A pre-norm transformer of two layers that exports in seconds, and the function-preserving ways of making it hard to round."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from vlm_edge.backends.onnx.export import Traced

WIDTH, HEADS, TOKENS = 64, 2, 9


class Layer(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps), nn.LayerNorm(WIDTH, eps)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.fc1, self.act, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normed = self.norm1(hidden)
        query, key, value = (
            layer(normed).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        hidden = hidden + self.out(mixed.transpose(1, 2).flatten(2))
        return hidden + self.fc2(self.act(self.fc1(self.norm2(hidden))))


class SmallTower(nn.Module):
    """pixel_values [V, 3, 12, 12] -> [V, 9, 40]."""

    axes: ClassVar = {"pixel_values": {0: "views"}}

    def __init__(self, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.layers = nn.ModuleList(Layer(eps) for _ in range(2))
        self.norm, self.projector = nn.LayerNorm(WIDTH, eps), nn.Linear(WIDTH, 40)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden = self.patches(pixel_values).flatten(2).transpose(1, 2)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.projector(self.norm(hidden))


def small_tower(*, eps: float = 1e-5, seed: int = 0) -> SmallTower:
    """Random weights that keep variances near one, norms that are not all ones."""
    torch.manual_seed(seed)
    tower = SmallTower(eps=eps).eval()
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            elif name.endswith("weight"):
                parameter.normal_(1, 0.2)
            else:
                parameter.normal_(0, 0.1)
    return tower


def with_large_residual(factor: float) -> SmallTower:
    """The same function with a residual stream `factor` times larger from the first layer on, as InternViT's grows.

    Norms do not see a common factor when their epsilon is negligible, so whatever adds to the stream is scaled.
    """
    tower = small_tower(eps=1e-12)
    with torch.no_grad():
        for layer in (tower.patches, *(part for block in tower.layers for part in (block.out, block.fc2))):
            layer.weight.mul_(factor)
            layer.bias.mul_(factor)
    return tower


def with_outlier_channels(tower: SmallTower, factors: tuple[float, ...] = (8, 16, 32, 64)) -> SmallTower:
    """The same function with a few channels after each norm `factors` times larger, and their readers' columns smaller."""
    channels = torch.arange(len(factors)) * 13 + 3
    scale = torch.tensor(factors)
    with torch.no_grad():
        for block in tower.layers:
            for norm, readers in ((block.norm1, (block.query, block.key, block.value)), (block.norm2, (block.fc1,))):
                norm.weight[channels] *= scale
                norm.bias[channels] *= scale
                for reader in readers:
                    reader.weight[:, channels] /= scale
    return tower


def pixels(views: int, seed: int) -> dict[str, np.ndarray]:
    return {"pixel_values": np.random.default_rng(seed).normal(size=(views, 3, 12, 12)).astype(np.float32)}


def inputs(count: int = 8) -> list[dict[str, np.ndarray]]:
    return [pixels(2 + seed % 3, seed) for seed in range(count)]


def copy_of(traced: Traced) -> Traced:
    """The same trace with a graph of its own, so that one export serves several tests."""
    return replace(traced, graph=ir.serde.deserialize_model(ir.serde.serialize_model(traced.graph)))

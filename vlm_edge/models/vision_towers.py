"""ViTs as the families use them: some hidden states of a tower, and only the layers that those need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from vlm_edge.errors import BadInput


@dataclass(frozen=True)
class TowerLayout:
    """Where a tower keeps its parts: modules before the layers, the list of layers, and how one layer is called."""

    stem: tuple[str, ...]
    layers: str
    masked: bool = True
    """Whether a layer has to be given an attention mask; None stands for full attention."""
    baked: bool = False
    """Whether its embeddings interpolate positions on every call: a bicubic Resize in a graph, unless done beforehand."""


LAYOUTS = {
    "clip_vision_model": TowerLayout(("embeddings", "pre_layrnorm"), "encoder.layers"),
    "siglip_vision_model": TowerLayout(("embeddings",), "encoder.layers"),
    "dinov2": TowerLayout(("embeddings",), "encoder.layer", baked=True),
    "internvl_vision": TowerLayout(("embeddings",), "encoder.layer", masked=False, baked=True),
}


class HiddenStates(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """pixel_values [V, 3, S, S] -> the hidden states [V, P, D] that `indices` name, in their order.

    Index 0 is the input of the first layer, -1 the output of the last, as in transformers' `hidden_states`. Layers beyond the
    last one named are left out. P counts the class token where the tower has one. Raises BadInput for a tower of unknown
    layout or an index beyond its layers.
    """

    def __init__(self, tower: Any, indices: Sequence[int]) -> None:
        super().__init__()
        layout = LAYOUTS.get(tower.config.model_type)
        if layout is None:
            raise BadInput(
                f"vision towers of type {tower.config.model_type!r} are not supported",
                remedy=f"use a checkpoint whose tower is one of {', '.join(sorted(LAYOUTS))}",
            )
        layers = tower.get_submodule(layout.layers)
        self.counts = [_layers_before(index, len(layers)) for index in indices]
        self.masked = layout.masked
        stem = [tower.get_submodule(name) for name in layout.stem]
        if layout.baked:
            stem[0] = ClassTokenEmbeddings(stem[0], tower.config.image_size)
        self.stem = nn.Sequential(*stem)
        self.layers = nn.ModuleList(list(layers)[: max(self.counts)])

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Run the stem and the layers once, keeping what was asked for."""
        states = [self.stem(pixel_values)]
        for layer in self.layers:
            states.append(layer(states[-1], None) if self.masked else layer(states[-1]))
        return [states[count] for count in self.counts]


class ClassTokenEmbeddings(nn.Module):  # type: ignore[misc]
    """Patches and a class token with their positions interpolated once, for one size of views."""

    def __init__(self, embeddings: Any, view_px: int | Sequence[int]) -> None:
        super().__init__()
        self.patches = embeddings.patch_embeddings
        self.class_token = embeddings.cls_token
        height, width = (view_px, view_px) if isinstance(view_px, int) else view_px
        self.positions: torch.Tensor | None = None
        if embeddings.position_embeddings is not None:
            patch = self.patches.projection.stride
            count = (height // patch[0]) * (width // patch[1])
            like = embeddings.position_embeddings
            with torch.no_grad():
                table = embeddings.interpolate_pos_encoding(like.new_empty(1, count + 1, like.shape[-1]), height, width)
            self.positions = nn.Parameter(table, requires_grad=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[V, 3, S, S] -> [V, 1 + P, D]."""
        patches = self.patches(pixel_values)
        states = torch.cat((self.class_token.expand(patches.shape[0], -1, -1), patches), dim=1)
        return states if self.positions is None else states + self.positions


class FeaturesAndProjector(nn.Module):  # type: ignore[misc]
    """pixel_values [V, 3, S, S] -> image_features [V, P, Dl]: LLaVA's choice of layers, each position projected alone.

    layers: one index, or several whose states stand side by side.  drop_class: leave the class token out of each.
    """

    axes: ClassVar = {"pixel_values": {0: "views"}}

    def __init__(self, tower: Any, projector: nn.Module, layers: int | Sequence[int], *, drop_class: bool) -> None:
        super().__init__()
        self.tower = HiddenStates(tower, (layers,) if isinstance(layers, int) else layers)
        self.projector = projector
        self.drop_class = drop_class

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The hidden layers, joined along the channels, through the projector."""
        hidden = torch.cat(self.tower(pixel_values), dim=-1)
        return self.projector(hidden[:, 1:] if self.drop_class else hidden)


def _layers_before(index: int, layers: int) -> int:
    count = layers + 1 + index if index < 0 else index
    if not 0 <= count <= layers:
        raise BadInput(
            f"vision_feature_layer {index} is beyond the tower's {layers} layers",
            remedy="correct vision_feature_layer in config.json",
        )
    return count

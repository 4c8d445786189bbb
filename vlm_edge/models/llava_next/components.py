"""LLaVA-NeXT's tower and projector as a torch module, and the learned newline that the host puts after each row."""

from __future__ import annotations

import torch
from transformers import LlavaNextForConditionalGeneration

from vlm_edge.models.vision_towers import FeaturesAndProjector

PARTS = ("model.vision_tower", "model.multi_modal_projector", "model.image_newline")
"""What `VisionAndProjector` and `image_newline` need of the model, as models.weights.load_parts takes it."""


class VisionAndProjector(FeaturesAndProjector):
    """pixel_values [V, 3, S, S] -> image_features [V, P, Dl] of the global view and of each AnyRes tile alone.

    transformers' `get_image_features` goes further: it lays the tiles' features out as one grid, cuts the padding off and ends
    each row with `image_newline`. Those sizes depend on the image, so that is the host's work and not in the graph.
    """

    def __init__(self, model: LlavaNextForConditionalGeneration) -> None:
        config = model.config
        super().__init__(
            model.model.vision_tower, model.model.multi_modal_projector, config.vision_feature_layer,
            drop_class=config.vision_feature_select_strategy == "default",
        )  # fmt: skip


def image_newline(model: LlavaNextForConditionalGeneration) -> torch.Tensor:
    """The embedding [Dl] that ends a row of the unpadded grid."""
    return model.model.image_newline.detach()

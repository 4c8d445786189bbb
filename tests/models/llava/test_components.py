"""The exported tower and projector against LLaVA's own image features, on random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests import tiny_vlms  # noqa: E402  # needs torch
from vlm_edge.errors import BadInput  # noqa: E402

TOWERS = {"clip": tiny_vlms.CLIP, "siglip": tiny_vlms.SIGLIP, "dinov2": tiny_vlms.DINO}


@pytest.mark.parametrize(("tower", "layer", "strategy", "patches"), [
    ("clip", -2, "default", 16),
    ("clip", -1, "full", 17),
    ("clip", 2, "default", 16),
    ("clip", [-2, 0, 3], "default", 16),
    ("clip", [-3, -1], "full", 17),
    ("siglip", -2, "full", 16),
    ("siglip", [-1, 1], "full", 16),
    ("dinov2", -2, "default", 16),
    ("dinov2", -1, "full", 17),
])  # fmt: skip
def test_features_equal_transformers(tower: str, layer: Any, strategy: str, patches: int) -> None:
    model = tiny_vlms.llava(TOWERS[tower], layer, strategy)
    arrays = tiny_vlms.views(model, 1, 3)
    measured = tiny_vlms.run_module(tiny_vlms.component("llava", model), arrays)
    assert measured.shape == (3 * patches, 60)
    np.testing.assert_allclose(measured, tiny_vlms.features(model, arrays), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("layer", "layers"), [(-1, 5), (-2, 4), (0, 0), ([1, -3], 3)])
def test_only_layers_that_run_are_there(layer: Any, layers: int) -> None:
    module = tiny_vlms.component("llava", tiny_vlms.llava(layer=layer))
    assert len(module.tower.layers) == layers


def test_weights_are_shared_with_the_model() -> None:
    model = tiny_vlms.llava()
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in tiny_vlms.component("llava", model).parameters()} <= own


def test_positions_of_dinov2_are_interpolated_once_for_a_smaller_view() -> None:
    """A DINOv2 trained at 42 px on views of 28 px; the reference interpolates on every call."""
    from vlm_edge.models.vision_towers import ClassTokenEmbeddings

    embeddings = tiny_vlms.llava({**tiny_vlms.DINO, "image_size": 42}).model.vision_tower.embeddings
    pixels = torch.from_numpy(tiny_vlms.picture(0, (2, 3, 28, 28)))
    with torch.no_grad():
        measured, expected = ClassTokenEmbeddings(embeddings, 28)(pixels), embeddings(pixels)
    torch.testing.assert_close(measured, expected)


@pytest.mark.parametrize("layer", [6, -7])
def test_a_feature_layer_beyond_the_tower_is_refused(layer: int) -> None:
    model = tiny_vlms.llava()
    model.config.vision_feature_layer = layer
    with pytest.raises(BadInput, match=f"vision_feature_layer {layer}"):
        tiny_vlms.component("llava", model)


def test_a_tower_of_unknown_layout_is_refused_by_name() -> None:
    model = tiny_vlms.llava()
    model.model.vision_tower.config.model_type = "pixtral"
    with pytest.raises(BadInput, match="'pixtral'") as caught:
        tiny_vlms.component("llava", model)
    assert "siglip_vision_model" in caught.value.remedy


def test_the_text_model_alone_gives_the_same_logits() -> None:
    from vlm_edge.models.llava.components import text_model

    model = tiny_vlms.llava()
    ids = torch.tensor([[5, 9, 11, 40]])
    with torch.no_grad():
        torch.testing.assert_close(text_model(model)(ids).logits, model(ids).logits)

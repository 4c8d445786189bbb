"""The tower and connector of Idefics3 and SmolVLM against transformers."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests import tiny_vlms  # noqa: E402  # needs torch


def close(family: str, model: object, seed: int, count: int) -> np.ndarray:
    tiny = tiny_vlms.FAMILIES[family]
    arrays = tiny.arrays(model, seed, count)
    measured = tiny_vlms.run_module(tiny_vlms.component(family, model), arrays)
    with torch.no_grad():
        np.testing.assert_allclose(measured, tiny.reference(model, arrays), rtol=1e-5, atol=1e-5)
    return measured


@pytest.mark.parametrize("name", ["Idefics3", "SmolVLM"])
@pytest.mark.parametrize("views", [1, 3])
def test_features_equal_transformers(name: str, views: int) -> None:
    assert close("idefics3", tiny_vlms.idefics3(name), 1, views).shape == (views * 4, 60)


@pytest.mark.parametrize("name", ["Idefics3", "SmolVLM"])
def test_the_mask_of_full_views_changes_nothing(name: str) -> None:
    """Why the graph has no mask: with the processor's all-ones mask transformers gives what it gives without."""
    model = tiny_vlms.idefics3(name)
    pixels = torch.from_numpy(tiny_vlms.views(model, 3, 2)["pixel_values"])[None]
    ones = torch.ones(1, 2, tiny_vlms.SIDE, tiny_vlms.SIDE, dtype=torch.int64)
    with torch.no_grad():
        masked = model.get_image_features(pixels, pixel_attention_mask=ones).pooler_output
    measured = tiny_vlms.run_module(tiny_vlms.component("idefics3", model), {"pixel_values": pixels[0].numpy()})
    np.testing.assert_allclose(measured, tiny_vlms.rows_of(list(masked)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", [14, 21, 28, 49, 91, 161, 364, 378])
def test_positions_are_those_of_the_tower_at_sizes_where_rounding_matters(side: int) -> None:
    from vlm_edge.models.idefics3.components import full_view_positions

    config = transformers_config(side)
    tower = transformers.models.idefics3.modeling_idefics3.Idefics3VisionTransformer(config).eval()
    patches = side // 7
    pixels = torch.randn(1, 3, side, side)
    with torch.no_grad():
        whole = tower.embeddings(pixels, torch.ones(1, patches, patches, dtype=torch.bool))
        alone = tower.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(alone + full_view_positions(tower), whole)


def transformers_config(side: int) -> object:
    return transformers.Idefics3VisionConfig(
        hidden_size=12, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, patch_size=7, image_size=side
    )

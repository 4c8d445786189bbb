"""LLaVA-NeXT's tiles, each alone, against transformers before it packs them."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests import tiny_vlms  # noqa: E402  # needs torch


def close(family: str, model: object, seed: int, count: int) -> np.ndarray:
    tiny = tiny_vlms.FAMILIES[family]
    arrays = tiny.arrays(model, seed, count)
    measured = tiny_vlms.run_module(tiny_vlms.component(family, model), arrays)
    with torch.no_grad():
        np.testing.assert_allclose(measured, tiny.reference(model, arrays), rtol=1e-5, atol=1e-5)
    return measured


@pytest.mark.parametrize("layer", [-2, -1, [-2, 1]])
@pytest.mark.parametrize("tiles", [3, 5])
def test_tiles_equal_transformers_before_packing(layer: object, tiles: int) -> None:
    assert close("llava_next", tiny_vlms.llava_next(layer), 1, tiles).shape == (tiles * 16, 60)


def test_packing_on_the_host_gives_what_transformers_gives() -> None:
    """The graph's features, laid out by transformers' own packing with our newline, are its pooler_output."""
    from vlm_edge.models.llava_next.components import image_newline

    model = tiny_vlms.llava_next()
    pixels = tiny_vlms.views(model, 2, 3)["pixel_values"]
    size = torch.tensor([[20, 56]])
    tiles = torch.from_numpy(tiny_vlms.run_module(tiny_vlms.component("llava_next", model), {"pixel_values": pixels}))
    with torch.no_grad():
        packed, _ = model.model.pack_image_features(
            [tiles.reshape(3, 16, 60)],
            size,
            vision_feature_select_strategy="default",
            image_newline=image_newline(model),
        )
        expected = model.get_image_features(torch.from_numpy(pixels)[None], image_sizes=size).pooler_output
    np.testing.assert_allclose(tiny_vlms.rows_of(list(packed)), tiny_vlms.rows_of(list(expected)), rtol=1e-5, atol=1e-5)

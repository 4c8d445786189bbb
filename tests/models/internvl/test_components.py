"""InternVL's tower, pixel shuffle and projector against transformers."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests import tiny_vlms  # noqa: E402  # needs torch
from vlm_edge.errors import BadInput  # noqa: E402


def close(family: str, model: object, seed: int, count: int) -> np.ndarray:
    tiny = tiny_vlms.FAMILIES[family]
    arrays = tiny.arrays(model, seed, count)
    measured = tiny_vlms.run_module(tiny_vlms.component(family, model), arrays)
    with torch.no_grad():
        np.testing.assert_allclose(measured, tiny.reference(model, arrays), rtol=1e-5, atol=1e-5)
    return measured


@pytest.mark.parametrize(("layer", "options"), [
    (-1, {}),
    (-1, {"use_mean_pooling": False}),
    (-2, {}),
    (-1, {"norm_type": "rms_norm"}),
    (-1, {"use_qk_norm": True}),
    (-1, {"use_absolute_position_embeddings": False}),
])  # fmt: skip
def test_features_equal_transformers(layer: int, options: dict[str, object]) -> None:
    assert close("internvl", tiny_vlms.internvl(layer, **options), 1, 3).shape == (3 * 4, 60)


def test_a_grid_that_cannot_be_shuffled_is_refused() -> None:
    with pytest.raises(BadInput, match="3x3 patches cannot be shuffled by 2"):
        tiny_vlms.component("internvl", tiny_vlms.internvl(image_size=[21, 21]))

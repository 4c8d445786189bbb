"""Idefics2's tower, projection and resampler on views of several sizes against transformers."""

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


@pytest.fixture(scope="module")
def model() -> object:
    return tiny_vlms.idefics2()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("views", [1, 3])
def test_views_of_different_sizes_equal_transformers(model: object, seed: int, views: int) -> None:
    assert close("idefics2", model, seed, views).shape == (views * 5, 60)


def test_padding_is_not_seen(model: object) -> None:
    """What stands in the padding has no effect, and the mask does: without it the same pixels give other features."""
    arrays = dict(tiny_vlms.padded_views(model, 0, 3))
    module = tiny_vlms.component("idefics2", model)
    clean = tiny_vlms.run_module(module, arrays)
    whole_patches = arrays["pixel_attention_mask"][:, None].astype(bool)
    noisy = np.where(whole_patches, arrays["pixel_values"], np.float32(7))
    # A patch at the edge that is cut by the padding is masked as a whole, so its pixels may change too.
    np.testing.assert_allclose(
        tiny_vlms.run_module(module, {**arrays, "pixel_values": noisy}), clean, rtol=1e-4, atol=1e-4
    )
    full = {**arrays, "pixel_attention_mask": np.ones_like(arrays["pixel_attention_mask"])}
    assert np.abs(tiny_vlms.run_module(module, full) - clean).max() > 0.01

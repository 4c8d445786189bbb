"""Qwen2.5-VL's windowed tower on several images at once against transformers."""

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
    return tiny_vlms.qwen2_5_vl()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("images", [1, 2, 3])
def test_images_of_different_sizes_equal_transformers(model: object, seed: int, images: int) -> None:
    """Of the five sizes only one is a multiple of the window, and one is smaller than a window."""
    close("qwen2_5_vl", model, seed, images)


def test_windows_matter(model: object) -> None:
    """The test above would not notice a tower whose windows were ignored, if they had no effect at this size."""
    arrays = dict(tiny_vlms.packed(model, 3, 1))
    module = tiny_vlms.component("qwen2_5_vl", model)
    right = tiny_vlms.run_module(module, arrays)
    module.full = frozenset(range(5))
    assert np.abs(tiny_vlms.run_module(module, arrays) - right).max() > 0.05


def test_empty_windows_are_harmless(model: object) -> None:
    """transformers removes windows without patches; a host that leaves them in gets the same."""
    arrays = dict(tiny_vlms.packed(model, 0, 2))
    module = tiny_vlms.component("qwen2_5_vl", model)
    right = tiny_vlms.run_module(module, arrays)
    cu = arrays["cu_window_seqlens"]
    arrays["cu_window_seqlens"] = np.sort(np.concatenate([cu, cu[1:3], cu[-1:]]))
    np.testing.assert_allclose(tiny_vlms.run_module(module, arrays), right, rtol=1e-4, atol=1e-5)

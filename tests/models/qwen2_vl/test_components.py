"""Qwen2-VL's tower on several images at once against transformers."""

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
    return tiny_vlms.qwen2_vl()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("images", [1, 2, 3])
def test_images_of_different_sizes_equal_transformers(model: object, seed: int, images: int) -> None:
    close("qwen2_vl", model, seed, images)


def test_images_do_not_see_each_other(model: object) -> None:
    """Two images in one call give what each gives alone."""
    module = tiny_vlms.component("qwen2_vl", model)
    both = tiny_vlms.packed(model, 0, 2)
    first = tiny_vlms.packed(model, 0, 1)
    rows = len(first["pixel_values"])
    alone = tiny_vlms.run_module(module, {**first, "pixel_values": both["pixel_values"][:rows]})
    np.testing.assert_allclose(tiny_vlms.run_module(module, both)[: rows // 4], alone, rtol=1e-4, atol=1e-5)

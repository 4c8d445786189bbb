"""Positions of three parts against transformers' get_rope_index, without its processor."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny_vlms
from vlm_edge.core.geometry import PatchGeometry
from vlm_edge.models.qwen_prompt import rope_positions

GEOMETRY = PatchGeometry(448, (32, 32), patch_px=7, merge=2, min_pixels=784, max_pixels=9800)
SIZES = st.tuples(st.integers(1, 300), st.integers(1, 300)).filter(lambda size: max(size) <= 200 * min(size))


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl"])
def model(request: pytest.FixtureRequest):
    return tiny_vlms.FAMILIES[request.param].model()


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.one_of(st.integers(1, 9), SIZES), min_size=1, max_size=5).filter(
        lambda parts: not any(isinstance(a, int) == isinstance(b, int) for a, b in itertools.pairwise(parts))
    )
)
def test_positions_of_text_and_images_in_any_order(model, parts) -> None:
    """transformers takes images that touch for one, so text stands between them, as it does in every prompt."""
    spans, kinds, grids = [], [], []
    for part in parts:
        layout = None if isinstance(part, int) else GEOMETRY.layout(part)
        length = part if layout is None else layout.visual_tokens
        spans.append((length, layout))
        kinds += [int(layout is not None)] * length
        grids += [layout.grid_thw] if layout else []
    ids = torch.ones(1, len(kinds), dtype=torch.int64)
    expected, _ = model.model.get_rope_index(
        ids, torch.tensor([kinds]), image_grid_thw=torch.tensor(grids) if grids else None
    )
    np.testing.assert_array_equal(rope_positions(spans), expected[:, 0].numpy())


def test_the_example_of_the_docstring() -> None:
    layout = GEOMETRY.layout((42, 28))
    assert layout.token_grid == (2, 3)
    positions = rope_positions([(2, None), (6, layout), (1, None)])
    assert positions.tolist() == [[0, 1, 2, 2, 2, 2, 2, 2, 5], [0, 1, 2, 2, 2, 3, 3, 3, 5], [0, 1, 2, 3, 4, 2, 3, 4, 5]]
    assert positions.dtype == np.int64


def test_nothing_has_no_positions() -> None:
    assert rope_positions([]).shape == (3, 0)

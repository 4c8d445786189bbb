"""Packed patches: the indices of several images at once, against what transformers' towers compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from vlm_edge.models.packed_patches import tower_indices

GRIDS = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 13), st.integers(1, 13)), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(GRIDS, st.integers(1, 3), st.integers(1, 5))
def test_indices_equal_transformers(tokens: list[tuple[int, int, int]], merge: int, window: int):
    grids = [(frames, rows * merge, cols * merge) for frames, rows, cols in tokens]
    indices = tower_indices(grids, merge=merge, window=window)
    thw = torch.tensor(grids)
    order, windows = get_vision_window_index(thw, merge, window * merge * 14, 14)
    np.testing.assert_array_equal(indices["window_index"], order.numpy())
    np.testing.assert_array_equal(indices["cu_window_seqlens"], windows.numpy())
    np.testing.assert_array_equal(indices["cu_seqlens"], get_vision_cu_seqlens(thw).numpy())
    np.testing.assert_array_equal(indices["position_ids"], get_vision_position_ids(thw, merge).numpy())
    assert {name: str(array.dtype) for name, array in indices.items()} == {
        "position_ids": "int64", "cu_seqlens": "int32", "window_index": "int64", "cu_window_seqlens": "int32",
    }  # fmt: skip


def test_a_window_by_hand():
    """3 x 5 tokens, windows of 2 x 2: three windows above, three below of one row."""
    indices = tower_indices([(1, 3, 5)], merge=1, window=2)
    assert indices["window_index"].tolist() == [0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14]
    assert indices["cu_window_seqlens"].tolist() == [0, 4, 8, 10, 12, 14, 15]


@pytest.mark.parametrize("merge", [1, 2])
def test_without_windows_there_are_no_window_indices(merge: int):
    assert set(tower_indices([(1, 4, 6)], merge=merge, window=None)) == {"position_ids", "cu_seqlens"}

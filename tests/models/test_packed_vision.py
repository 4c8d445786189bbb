"""Segments of packed patches against slow loops."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from vlm_edge.models.packed_vision import blocks, segment_ids, windows  # noqa: E402  # needs torch

CU = [[0, 5], [0, 1, 2, 3], [0, 4, 4, 9, 16], [0, 7, 7, 7, 8]]


def loop(cu: list[int]) -> list[int]:
    return [segment for segment in range(len(cu) - 1) for _ in range(cu[segment], cu[segment + 1])]


@pytest.mark.parametrize("cu", CU)
def test_each_patch_knows_its_segment(cu: list[int]) -> None:
    assert segment_ids(torch.tensor(cu), cu[-1]).tolist() == loop(cu)


@pytest.mark.parametrize("cu", CU)
def test_a_block_lets_through_its_own_patches_only(cu: list[int]) -> None:
    ids = np.array(loop(cu))
    bias = blocks(torch.tensor(cu), torch.zeros(cu[-1], 3)).bias[0, 0]
    assert (bias.numpy() == 0).tolist() == (ids[:, None] == ids[None]).tolist()
    assert torch.isfinite(bias).all()


@pytest.mark.parametrize("cu", CU)
def test_windows_hold_each_patch_once_and_bring_it_back(cu: list[int]) -> None:
    largest = 7
    segments = windows(torch.tensor(cu), torch.zeros(cu[-1], 3), largest)
    assert segments.gather is not None
    assert segments.back is not None
    for window, (start, end) in enumerate(pairwise(cu)):
        seen = segments.bias[window, 0, 0] == 0
        assert segments.gather[window][seen].tolist() == list(range(start, end))
    rows = torch.arange(cu[-1])
    assert rows[segments.gather].flatten()[segments.back].tolist() == rows.tolist()

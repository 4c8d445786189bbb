"""Where reduced tokens stood among all of them, against walking through the prompt token by token."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.token_positions import placed
from vlm_edge.tokens.positions import TokenSet, keep_all
from vlm_edge.tokens.reduce import reduce_tokens
from vlm_edge.vision.tiling import Tile

GRID = (4, 4)
APART = (Tile(0, 0, 8, 8, 0.0), Tile(20, 0, 28, 8, 0.0))
ABUTTING = (Tile(0, 0, 8, 8, 0.0), Tile(8, 0, 16, 8, 0.0), Tile(0, 30, 8, 38, 0.0))


def walked(sets: tuple[TokenSet, ...], strips: list[list[int]]) -> list[int]:
    """Position by position through the prompt of every token, noting those whose token is the first member of a reduced one."""
    found, position = [], 0
    for strip in strips:
        found += [position + i for i in range(len(strip))]  # markers are never reduced
        position += len(strip)
        for row in range(GRID[0]):
            for view in strip:
                members = sets[view].members
                for cell in range(row * GRID[1], (row + 1) * GRID[1]):
                    token = members[cell]
                    if token >= 0 and cell == int(np.flatnonzero(members == token)[0]):
                        found.append(position)
                    position += 1
    return found


@pytest.mark.parametrize(("tiles", "strips"), [(APART, [[0], [1], [2]]), (ABUTTING, [[0], [1, 2], [3]]), ((), [[0]])])
@pytest.mark.parametrize("reduction", ["none", "threshold", "tome", "divprune", "random"])
def test_positions_are_those_of_the_walk(tiles: tuple[Tile, ...], strips: list[list[int]], reduction: str) -> None:
    features = np.random.default_rng(3).normal(size=(1 + len(tiles), 16, 8)).astype(np.float32)
    features[:, 4:8] = features[:, 3:4]  # some neighbours that are alike
    sets = reduce_tokens(reduction, features, grid=GRID, threshold=0.9, keep=0.5)
    positions, full = placed(sets, tiles, GRID, 16)
    assert positions.tolist() == walked(sets, strips)
    assert full == 17 * (1 + len(tiles))


def test_every_token_stands_where_it_is() -> None:
    positions, full = placed(keep_all(np.zeros((3, 16, 2), np.float32), grid=GRID), APART, GRID, 16)
    assert positions.tolist() == list(range(full))

"""From a recipe's limits to the range of views, and settings that make no sense."""

from __future__ import annotations

import pytest

from vlm_edge.backends.tensorrt.settings import BuildSettings, settings_for
from vlm_edge.core.bundle import Limits
from vlm_edge.errors import BadInput
from vlm_edge.units import MIB


@pytest.mark.parametrize(("tiles", "best", "most"), [(0, 1, 1), (1, 1, 2), (6, 4, 7), (7, 4, 8), (12, 7, 13)])
def test_the_range_of_views_follows_the_recipe(tiles: int, best: int, most: int) -> None:
    settings = settings_for(Limits(max_tiles=tiles, max_model_len=1), image_px=336, workspace_bytes=64 * MIB)
    assert settings.shapes() == ((1, 3, 336, 336), (best, 3, 336, 336), (most, 3, 336, 336))


def test_a_plan_that_counts_fewer_views_in_a_call_caps_the_range() -> None:
    limits = Limits(max_tiles=24, max_model_len=1)
    settings = settings_for(limits, image_px=112, workspace_bytes=64 * MIB, views_in_call=8)
    assert (settings.opt_views, settings.max_views) == (8, 8)


@pytest.mark.parametrize(
    ("best", "most", "shape", "workspace"),
    [
        (0, 1, (3, 4, 4), 64),
        (3, 2, (3, 4, 4), 64),
        (1, 1, (3, 0, 4), 64),
        (1, 1, (3, 4, 4), 15),
        (-1, -1, (3, 4, 4), 64),
    ],
)
def test_settings_that_make_no_sense_are_refused(best: int, most: int, shape: tuple, workspace: int) -> None:
    with pytest.raises(BadInput):
        BuildSettings(best, most, shape, workspace * MIB)

"""Tiles that the caller names: checked, kept in order, cut out of the image, and part of the cache's key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from vlm_edge.core import discover
from vlm_edge.core.bundle import RunDefaults
from vlm_edge.core.contracts import PromptBuilder
from vlm_edge.core.geometry import TokenGeometry
from vlm_edge.core.image_inputs import ImageInputs
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.answering.options import AskOptions, Look
from vlm_edge.pipeline.answering.views import Seen, see
from vlm_edge.vision.preprocess import global_view

GEOMETRY = TokenGeometry(view_px=16, grid=(2, 2))
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


class Encoder:
    """Keeps the views that it is given."""

    inputs = ("pixel_values",)

    def __init__(self) -> None:
        self.views: list[np.ndarray] = []

    def encode(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        self.views = list(arrays["pixel_values"])
        return np.ones((len(self.views), 4, 3), np.float32)


class Views:
    """Takes pixels as they are, and the whole image squeezed."""

    geometry = GEOMETRY

    def pixels(self, views: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(views).astype(np.float32)

    def prepare(self, image: np.ndarray, *, whole: bool) -> ImageInputs:
        assert whole
        view = self.pixels([global_view(image, 16)])
        return ImageInputs({"pixel_values": view}, ((0, 0, 60, 40),), GEOMETRY.layout((60, 40)))


def look(*boxes: tuple[int, int, int, int]) -> Look:
    return Look.of(AskOptions(tiles=boxes), RunDefaults(), 6, discover.family("llava"))


def seen(chosen: Look) -> tuple[Seen, Sequence[np.ndarray]]:
    encoder = Encoder()
    runs = {name: lambda views, *_: [np.concatenate(views)] for name in ("runs", "reduced_runs")}
    prompt = cast(PromptBuilder, SimpleNamespace(views=Views(), **runs))
    shown = see(PIXELS, source_px=(60, 40), look=chosen, prompt=prompt, encoder=encoder, timings_ms={}, free_tiles=True)
    return shown, encoder.views


def test_given_tiles_are_cut_out_in_their_order() -> None:
    boxes = ((44, 24, 60, 40), (0, 0, 16, 16), (5, 7, 15, 20))
    shown, views = seen(look(*boxes))
    assert tuple(tile.box for tile in shown.tiles) == boxes
    assert np.array_equal(views[1], PIXELS[24:40, 44:60])
    assert np.array_equal(views[2], PIXELS[:16, :16])
    assert np.array_equal(views[3][:13, :10], PIXELS[7:20, 5:15])
    assert shown.tokens_before == 4 * 4


def test_no_tiles_given_is_the_global_view_alone() -> None:
    chosen = look()
    assert (chosen.tiling, chosen.max_tiles) == ("none", 0)
    assert len(seen(chosen)[1]) == 1


def test_tiles_are_part_of_the_look() -> None:
    assert len({repr(chosen) for chosen in (look(), look((0, 0, 9, 9)), look((0, 0, 9, 8)))}) == 3
    assert look((0, 0, 9, 9), (9, 0, 18, 9)).max_tiles == 2


@pytest.mark.parametrize(
    "box",
    [(5, 0, 5, 9), (0, 9, 5, 5), (-1, 0, 5, 5), (0, 0, 5), (0, 0, 5, 5.0), (0, 0, 5, True), 7, ("0", "0", "5", "5")],
)
def test_bad_boxes_are_refused_at_once(box: Any) -> None:
    with pytest.raises(BadInput, match="tile"):
        AskOptions(tiles=(box,))


@pytest.mark.parametrize("other", [{"tiling": "grid"}, {"max_tiles": 2}])
def test_given_tiles_leave_nothing_else_to_choose(other: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="tiles are given"):
        AskOptions(tiles=(), **other)


def test_more_tiles_than_the_bundle_allows_are_refused() -> None:
    with pytest.raises(BadInput, match="7 tiles"):
        look(*[(0, 0, 9, 9)] * 7)


@pytest.mark.parametrize(
    ("box", "says"), [((0, 0, 17, 16), "larger"), ((50, 0, 61, 9), "past"), ((0, 35, 9, 41), "past")]
)
def test_tiles_must_fit_a_view_and_the_image(box: tuple[int, int, int, int], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        seen(look(box))

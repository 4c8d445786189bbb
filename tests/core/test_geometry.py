"""Layouts and counts of every kind of geometry; equality with transformers is tested family by family in tests/models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_edge.core.geometry import (
    AnyResGeometry,
    Geometry,
    PatchGeometry,
    QuarterGeometry,
    SplitGeometry,
    TileGeometry,
    TokenGeometry,
    visual_token_count,
)
from vlm_edge.core.load import parse, to_plain
from vlm_edge.errors import BadInput

PINPOINTS = ((672, 336), (336, 672), (672, 672), (336, 1008), (1008, 336))
GEOMETRIES: dict[str, TokenGeometry] = {
    "one view": TokenGeometry(336, (24, 24)),
    "marked view": TokenGeometry(112, (8, 8), 1),
    "anyres": AnyResGeometry(336, (24, 24), pinpoints=PINPOINTS),
    "tiles": TileGeometry(448, (16, 16), min_tiles=1, max_tiles=12),
    "split": SplitGeometry(364, (13, 13), longest_px=1456),
    "whole": SplitGeometry(512, (8, 8), longest_px=2048, split=False),
    "quarters": QuarterGeometry(980, (1, 64), shortest_px=378, longest_px=980, split=True),
    "patches": PatchGeometry(448, (16, 16), patch_px=14, merge=2, min_pixels=3136, max_pixels=12845056),
}
SIZES = st.tuples(st.integers(2, 5000), st.integers(2, 5000)).filter(lambda size: max(size) <= 200 * min(size))
EVERY = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)


@dataclass(frozen=True)
class Held:
    """A file that holds a geometry of any kind, as a manifest does."""

    geometry: Geometry
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


@EVERY
@settings(deadline=None)
@given(size=SIZES)
def test_a_layout_is_consistent(geometry: TokenGeometry, size: tuple[int, int]):
    layout = geometry.layout(size)
    x0, y0, x1, y1 = layout.content
    assert 0 <= x0 < x1 <= layout.canvas_px[0]
    assert 0 <= y0 < y1 <= layout.canvas_px[1]
    assert layout.views >= max(1, layout.rows * layout.cols)
    assert (layout.rows == 0) == (layout.cols == 0)
    assert layout.visual_tokens > 0
    assert visual_token_count(geometry, image_px=size) == layout.visual_tokens + layout.marker_tokens
    assert visual_token_count(geometry, image_px=size, images=3) == 3 * visual_token_count(geometry, image_px=size)


@settings(deadline=None)
@given(SIZES)
def test_tokens_by_kind(size: tuple[int, int]):
    layouts = {name: geometry.layout(size) for name, geometry in GEOMETRIES.items()}
    assert layouts["one view"].visual_tokens == 576
    assert layouts["tiles"].visual_tokens == 256 * layouts["tiles"].views
    assert layouts["split"].visual_tokens == 169 * layouts["split"].views
    assert layouts["quarters"].visual_tokens == 64 * 5
    rows, cols = layouts["anyres"].token_grid
    assert layouts["anyres"].visual_tokens == 576 + rows * (cols + 1)
    assert layouts["patches"].visual_tokens * 784 == layouts["patches"].canvas_px[0] * layouts["patches"].canvas_px[1]
    assert 4 <= layouts["patches"].visual_tokens <= 16384


@pytest.mark.parametrize(
    ("name", "size", "tokens"),
    [
        ("anyres", (672, 672), 2928),
        ("anyres", (640, 480), 2340),
        ("anyres", (1920, 1080), 1948),
        ("anyres", (1, 2000), 576),  # thinner than two tokens: transformers unpads every column away, newlines remain
        ("tiles", (448, 448), 258),
        ("tiles", (896, 448), 770),
        ("split", (1000, 1000), 17 * 169 + 16 * 2 + 4 + 3),
        ("whole", (1000, 1000), 64 + 3),
        ("quarters", (3000, 7), 5 * 64 + 6),
        ("patches", (1344, 896), 1536),
        ("patches", (1, 1), 4),
    ],
)
def test_published_counts(name: str, size: tuple[int, int], tokens: int):
    extra = GEOMETRIES[name].layout(size).token_grid[0] if size == (1, 2000) else 0
    assert visual_token_count(GEOMETRIES[name], image_px=size) == tokens + extra


@EVERY
@pytest.mark.parametrize(("tiles", "images"), [(0, 1), (6, 1), (12, 2)])
def test_a_global_view_and_tiles_cost_the_same_in_every_family(geometry: TokenGeometry, tiles: int, images: int):
    view = geometry.grid[0] * geometry.grid[1] + geometry.separator_tokens
    assert visual_token_count(geometry, tiles=tiles, images=images) == images * (1 + tiles) * view


@EVERY
@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-3, 5)])
def test_an_image_without_pixels_is_refused(geometry: TokenGeometry, size: tuple[int, int]):
    with pytest.raises(BadInput, match="no pixels"):
        visual_token_count(geometry, image_px=size)


def test_what_a_family_refuses_the_planner_refuses():
    with pytest.raises(BadInput, match="200 times"):
        visual_token_count(GEOMETRIES["patches"], image_px=(1, 201))
    with pytest.raises(BadInput, match="cut in four"):
        visual_token_count(GEOMETRIES["quarters"], image_px=(1, 201))


def test_neither_tiles_nor_an_image():
    with pytest.raises(TypeError):
        visual_token_count(GEOMETRIES["tiles"])


@EVERY
def test_a_geometry_survives_json(geometry: TokenGeometry):
    restored = parse(to_plain(Held(geometry)), Held, "manifest.json")
    assert restored.geometry == geometry
    assert type(restored.geometry) is type(geometry)


def test_a_geometry_of_no_kind_is_refused():
    with pytest.raises(BadInput, match="geometry"):
        parse({"geometry": {"view_px": 1, "grid": [1, 1], "pinpoint": [[1, 1]]}}, Held, "manifest.json")


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_no_image_is_cut_into_more_tiles_than_the_geometry_says(geometry: TokenGeometry):
    """And some image is: the bound is what a bundle's limits are set to."""
    sizes = [(width, height) for width in (2, 40, 336, 700, 1456, 3000) for height in (2, 40, 336, 700, 1456, 3000)]
    counts = [geometry.layout(size).views - 1 for size in sizes if max(size) <= 200 * min(size)]
    assert max(counts) == geometry.most_tiles


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("size", [(1456, 700), (40, 3000), (300, 300)], ids=str)
def test_the_whole_image_is_one_view(geometry: TokenGeometry, size: tuple[int, int]):
    whole = geometry.whole()
    assert type(whole) is type(geometry)
    layout = whole.layout(size)
    assert (layout.views, whole.most_tiles) == (1, 0)
    newline = int(isinstance(geometry, AnyResGeometry))
    assert layout.visual_tokens == (
        geometry.tokens_per_view + newline if geometry.fixed_views else layout.visual_tokens
    )

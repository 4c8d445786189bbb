"""What is asked for: views and tokens of images, and values that are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.memory.subjects import LLAVA, QWEN
from vlm_edge.core.geometry import AnyResGeometry, TokenGeometry
from vlm_edge.errors import BadInput
from vlm_edge.memory.plan import plan_request
from vlm_edge.memory.request import Request, Subject, Visual, visual_of


def test_tiles_are_views_beside_the_global_one() -> None:
    visual = visual_of(LLAVA, Request(tiles=6, images=2))
    assert (visual.views, visual.at_once, visual.patches, visual.tokens) == (14, 7, 576, 14 * 576)
    separated = replace(LLAVA, geometry=TokenGeometry(view_px=336, grid=(24, 24), separator_tokens=1))
    assert visual_of(separated, Request(tiles=6, images=2)).prompt == 14 * 577


def test_a_share_is_kept_of_each_view() -> None:
    # 576 * 0.869 is 500.5: the textbook's 3,500 tokens of seven views
    visual = visual_of(LLAVA, Request(tiles=6, keep=0.869))
    assert (visual.tokens, visual.prompt) == (3500, 3500)
    assert visual_of(LLAVA, Request(tiles=0, keep=1e-9)).tokens == 1


def test_the_familys_own_rules() -> None:
    visual = visual_of(QWEN, Request(image_px=(1344, 896)))
    assert (visual.packed, visual.patches, visual.tokens, visual.prompt) == (True, 64 * 96, 32 * 48, 32 * 48)
    assert visual.view_px == 1344 * 896
    tiled = visual_of(QWEN, Request(image_px=(1344, 896), tiles=2))
    overview = 26 * 38  # patches of the whole image, in as many pixels as a view
    assert (tiled.packed, tiled.views, tiled.patches) == (True, 1, overview + 2 * 1024)


def test_no_tiles_is_the_whole_image_as_the_family_shows_it() -> None:
    request = Request(image_px=(1344, 896), tiles=0)
    assert visual_of(QWEN, request) == visual_of(QWEN, replace(request, tiles=None))
    pinned = replace(LLAVA, geometry=AnyResGeometry(336, (24, 24), pinpoints=((672, 672),)))
    visual = visual_of(pinned, request)
    assert (visual.views, visual.tokens) == (1, 576 + 1)  # a newline behind it
    assert visual_of(pinned, replace(request, tiles=None)).views == 5


def test_cross_attention_reads_padded_tiles_and_takes_one_position() -> None:
    assert LLAVA.vision is not None
    crossing = replace(
        LLAVA, text=replace(LLAVA.text, cross_attention_layers=(1,)), vision=replace(LLAVA.vision, joint_views=4)
    )
    visual = visual_of(crossing, Request(images=2))
    assert (visual.views, visual.tokens, visual.cross, visual.prompt) == (8, 2 * 4 * 576, 2 * 4 * 576, 2)


def test_no_images_and_no_tower() -> None:
    assert visual_of(LLAVA, Request(images=0)) == Visual()
    assert visual_of(Subject("text", LLAVA.text), Request()) == Visual()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"target": "tpu"}, "--target"),
        ({"weights": "int4"}, "--weights"),
        ({"lm_head": "fp8"}, "--lm-head"),
        ({"vision_dtype": "int4"}, "--vision-dtype"),
        ({"kv_cache": "int2"}, "--kv-cache-dtype"),
        ({"group_size": 100}, "--group-size"),
        ({"images": -1}, "--images"),
        ({"images": 10**9}, "--images"),
        ({"tiles": -1}, "--max-tiles"),
        ({"context": 0}, "--max-model-len"),
        ({"context": 10**12}, "--max-model-len"),
        ({"batch": 0}, "--batch-size"),
        ({"image_px": (0, 5)}, "--image-size"),
        ({"image_px": (5, 10**7)}, "--image-size"),
        ({"keep": 0.0}, "--keep"),
        ({"keep": 1.5}, "--keep"),
        ({"keep": float("nan")}, "--keep"),
    ],
)
def test_absurd_values_are_refused(changes: dict[str, object], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        Request(**changes)  # type: ignore[arg-type]


def test_a_context_must_hold_the_images_and_exist() -> None:
    with pytest.raises(BadInput, match="leave no room"):
        plan_request(LLAVA, Request(tiles=6, context=4032), budget_bytes=1 << 40)
    plan_request(LLAVA, Request(tiles=6, context=4033), budget_bytes=1 << 40)
    with pytest.raises(BadInput, match="positions of llava"):
        plan_request(LLAVA, Request(tiles=0, context=(1 << 20) + 1), budget_bytes=1 << 40)

"""A tower's activations against numbers worked out by hand and figures that were published."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.memory.subjects import CLIP_L_336, QWEN, QWEN_TOWER
from vlm_edge.core.specs import VisionSpec
from vlm_edge.memory.vision import (
    attention_tokens,
    projector_activation_bytes,
    score_values,
    vision_activation_bytes,
)
from vlm_edge.units import GIB, MIB


@pytest.mark.parametrize(
    ("tower", "patches", "gigabytes"),
    [(CLIP_L_336, None, 0.0107), (QWEN_TOWER, 5120, 0.839), (QWEN_TOWER, 16384, 8.59)],
)
def test_scores_of_one_layer_in_fp16(tower: object, patches: int | None, gigabytes: float) -> None:
    assert 2 * score_values(tower, patches=patches) / 1e9 == pytest.approx(gigabytes, rel=0.01)  # type: ignore[arg-type]


def test_windows_bound_the_scores_only_where_no_layer_sees_everything() -> None:
    windowed = replace(QWEN_TOWER, full_attention_layers=())
    assert score_values(windowed, patches=5120) == 16 * 5120 * 64
    assert score_values(windowed, patches=40) == 16 * 40 * 40  # an image smaller than a window
    assert score_values(QWEN_TOWER, patches=5120) == 16 * 5120 * 5120


def test_prefix_tokens_are_counted() -> None:
    assert attention_tokens(CLIP_L_336) == 577
    assert attention_tokens(replace(CLIP_L_336, prefix_tokens=5)) == 581
    assert attention_tokens(replace(CLIP_L_336, prefix_tokens=0)) == 576


def test_joint_views_attend_to_each_other_and_are_padded() -> None:
    # Llama 3.2 Vision: 1601 tokens a tile, 1608 with padding, four tiles
    tower = replace(CLIP_L_336, image_px=560, joint_views=4)
    assert attention_tokens(tower) == 4 * 1608
    one = vision_activation_bytes(tower, views=4)
    assert vision_activation_bytes(tower, views=8) == 2 * one
    assert one > 4 * vision_activation_bytes(replace(tower, joint_views=1), views=1)


def test_a_packed_tower_by_hand() -> None:
    # 1000 patches: pixels 3 * 2 * 1000 * 196; scores twice; four of the bias that parts images; a gated MLP of six inner tensors
    patches, width = 1000, 1280
    linear = patches * (6 * 3420 + 9 * width)
    values = 3 * 2 * patches * 196 + 2 * 16 * patches * patches + 4 * patches * patches + linear
    assert vision_activation_bytes(QWEN_TOWER, views=1, patches=patches, elem_bytes=2) == 2 * values
    fused = 3 * 2 * patches * 196 + patches * (6 * 3420 + 11 * width)
    assert vision_activation_bytes(QWEN_TOWER, views=1, patches=patches, elem_bytes=2, fused=True) == 2 * fused


def test_activations_as_measured_here() -> None:
    """MiB a view of towers that were run on a CPU, the reserve counted: never under by more than 2%."""
    shapes = ((577, 768, 12, 336, False, 50), (1024, 640, 10, 448, False, 85), (1025, 512, 8, 448, True, 48))
    for tokens, width, heads, side, fused, mib in shapes:
        vision = VisionSpec(
            width=width, layers=6, heads=heads, mlp=4 * width, image_px=side, patch_px=14, prefix_tokens=tokens % 2
        )
        assert attention_tokens(vision) == tokens
        found = vision_activation_bytes(vision, views=1, fused=fused, score_copies=1) / MIB * 17 / 16
        assert 0.98 * mib < found < 1.15 * mib


def test_packed_patches_as_measured_here() -> None:
    """A Qwen2.5-VL tower of width 640 on a CPU: 1344 x 896 px were 3.25 GiB beside the weights."""
    tower = VisionSpec(
        width=640, layers=6, heads=8, mlp=1712, image_px=448, patch_px=14, gated_mlp=True, prefix_tokens=0,
        temporal_patch=2, window_px=112, full_attention_layers=(3, 5),
    )  # fmt: skip
    found = vision_activation_bytes(tower, views=1, patches=6144) / GIB * 17 / 16
    assert 0.98 * 3.25 < found < 1.1 * 3.25


def test_a_projector_by_hand() -> None:
    assert QWEN.projector is not None
    # 4 patches become one row of 5120 values, which pass an inner layer of 5120 and become 3584
    rows = 250
    assert projector_activation_bytes(QWEN.projector, patches=1000) == 4 * rows * (2 * 5120 + 2 * 5120 + 3584)

"""Qwen2.5-VL's patches, counts and tower indices against transformers' processor and tower."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from tests.models.pictures import PICTURES, check_boxes, photo, reference
from vlm_edge.core.geometry import visual_token_count
from vlm_edge.errors import BadInput
from vlm_edge.models.qwen2_5_vl.images import pack, prepare, settings_from

FILE = {"image_processor_type": "Qwen2_5_VLImageProcessor", "min_pixels": 56 * 56, "max_pixels": 400 * 28 * 28}
SETTINGS = settings_from({}, FILE)
TOO_THIN = {"tall strip", "wide strip"}


@pytest.mark.parametrize("picture", sorted(PICTURES.keys() - TOO_THIN))
def test_patches_equal_transformers(picture: str):
    image = PICTURES[picture]
    inputs = prepare(image, SETTINGS)
    expected = reference(Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=313600), image)
    np.testing.assert_array_equal(inputs.arrays["pixel_values"], expected["pixel_values"])
    assert inputs.layout.grid_thw == tuple(expected["image_grid_thw"][0])
    assert inputs.visual_tokens == expected["image_grid_thw"][0].prod() // 4
    check_boxes(inputs, image)


@pytest.mark.parametrize("picture", sorted(TOO_THIN))
def test_too_thin_images_are_refused_as_transformers_does(picture: str):
    with pytest.raises(BadInput, match="200 times"):
        prepare(PICTURES[picture], SETTINGS)
    with pytest.raises(ValueError, match="200"):
        reference(Qwen2VLImageProcessorPil(), PICTURES[picture])


def test_200_to_1_is_just_taken():
    image = photo(400, 2)
    expected = reference(Qwen2VLImageProcessorPil(), image)
    np.testing.assert_array_equal(prepare(image, SETTINGS).arrays["pixel_values"], expected["pixel_values"])


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([(3136, 313600), (4 * 784, 12845056), (1, 784)]))
def test_sizes_equal_transformers(width: int, height: int, limits: tuple[int, int]):
    geometry = settings_from({}, {"size": {"shortest_edge": limits[0], "longest_edge": limits[1]}}).geometry
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(BadInput):
            geometry.layout((width, height))
        return
    layout = geometry.layout((width, height))
    assert layout.canvas_px == smart_resize(height, width, 28, *limits)[::-1]
    assert visual_token_count(geometry, image_px=(width, height)) == layout.canvas_px[0] * layout.canvas_px[1] // 784


def test_the_tower_computes_the_same_with_our_indices():
    """Sizes that windows do not divide, in one call: the tower's output with its own indices and with ours."""
    torch.manual_seed(0)
    config = Qwen2_5_VLVisionConfig(
        depth=2, hidden_size=32, intermediate_size=32, num_heads=2, out_hidden_size=16, fullatt_block_indexes=[1]
    )
    tower = Qwen2_5_VisionTransformerPretrainedModel(config).eval()
    images = [prepare(photo(width, height), SETTINGS) for width, height in ((150, 90), (60, 230), (112, 112))]
    packed = {name: torch.from_numpy(array) for name, array in pack(images, SETTINGS).items()}
    pixels = packed.pop("pixel_values")
    grids = torch.tensor([image.layout.grid_thw for image in images])
    with torch.no_grad():
        own = tower(pixels, grid_thw=grids).pooler_output
        # Grids that say nothing: whatever the tower took from them would be wrong.
        ours = tower(pixels, grid_thw=torch.zeros_like(grids), **packed).pooler_output
    assert len(own) == sum(image.visual_tokens for image in images)
    assert torch.equal(own, ours)


def test_one_image_packs_to_what_prepare_gives():
    inputs = prepare(photo(150, 90), SETTINGS)
    for name, array in pack([inputs], SETTINGS).items():
        np.testing.assert_array_equal(array, inputs.arrays[name])


@pytest.mark.parametrize(
    ("field", "config", "file"),
    [
        ("max_pixels", {}, {"min_pixels": 784 * 9, "max_pixels": 784 * 8}),
        ("max_pixels", {}, {"min_pixels": 1, "max_pixels": 783}),
        ("min_pixels", {}, {"min_pixels": -1}),
        (
            "max_pixels",
            {},
            {"min_pixels": None, "max_pixels": None, "size": {"shortest_edge": 9999, "longest_edge": 999}},
        ),
        ("window_size", {"vision_config": {"window_size": 100}}, {}),
        ("patch_size", {"vision_config": {"patch_size": 16}}, {}),
        ("merge_size", {}, {"merge_size": 4}),
        ("temporal_patch_size", {}, {"temporal_patch_size": 1}),
        ("resample", {}, {"resample": 6}),
        ("image_processor_type", {}, {"image_processor_type": "Glm4vImageProcessor"}),
    ],
)
def test_bad_files_name_the_field(field: str, config: dict[str, object], file: dict[str, object]):
    with pytest.raises(BadInput, match=field):
        settings_from(config, FILE | file)

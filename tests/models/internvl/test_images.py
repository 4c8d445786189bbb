"""InternVL's preprocessing and token counts against transformers' processor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from tests.models.pictures import PICTURES, check_boxes, reference
from vlm_edge.core.geometry import visual_token_count
from vlm_edge.errors import BadInput
from vlm_edge.models.internvl.images import prepare, settings_from

CONFIG = {"vision_config": {"image_size": [28, 28], "patch_size": [7, 7]}, "image_seq_length": 4}
FILE = {
    "image_processor_type": "GotOcr2ImageProcessorFast",
    "size": {"height": 28, "width": 28},
    "crop_to_patches": False,  # as published; transformers' processor of the family overrides it
    "min_patches": 1,
    "max_patches": 12,
}
PUBLISHED = settings_from({}, {"size": {"height": 448, "width": 448}})


def processor(least: int, most: int, side: int = 28) -> GotOcr2ImageProcessorPil:
    size = {"height": side, "width": side}
    return GotOcr2ImageProcessorPil(crop_to_patches=True, size=size, min_patches=least, max_patches=most)


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize(("least", "most"), [(1, 12), (1, 6), (2, 5), (1, 1)])
def test_pixels_equal_transformers(least: int, most: int, picture: str):
    image = PICTURES[picture]
    inputs = prepare(image, settings_from(CONFIG, FILE | {"min_patches": least, "max_patches": most}))
    expected = reference(processor(least, most), image)
    np.testing.assert_array_equal(inputs.arrays["pixel_values"], expected["pixel_values"])
    assert inputs.layout.views == expected["num_patches"][0]
    check_boxes(inputs, image)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 12), st.integers(0, 12))
def test_counts_equal_transformers(width: int, height: int, least: int, more: int):
    file = {"size": {"height": 448, "width": 448}, "min_patches": least, "max_patches": least + more}
    geometry = settings_from({}, file).geometry
    if least > 1 and least + more == 1:
        return
    expected = processor(least, least + more, 448).get_number_of_image_patches(height, width)
    assert visual_token_count(geometry, image_px=(width, height)) == 2 + 256 * expected  # the processor's own sum


@pytest.mark.parametrize(("size", "views"), [((448, 448), 1), ((896, 448), 3), ((1, 2000), 13), ((3000, 7), 13)])
def test_published_counts(size: tuple[int, int], views: int):
    layout = PUBLISHED.geometry.layout(size)
    assert (layout.views, layout.visual_tokens, layout.marker_tokens) == (views, 256 * views, 2)


@pytest.mark.parametrize(
    ("field", "config", "file"),
    [
        ("max_patches", {}, {"min_patches": 3, "max_patches": 2}),
        ("min_patches", {}, {"min_patches": 0}),
        ("max_patches", {}, {"max_patches": 10**9}),
        ("image_size", {"vision_config": {"image_size": [28, 56], "patch_size": 7}}, {}),
        ("downsample_ratio", {"downsample_ratio": 0.3}, {}),
        ("downsample_ratio", {"downsample_ratio": 0}, {}),
        ("downsample_ratio", {"downsample_ratio": 1 / 3, "image_seq_length": None}, {}),
        ("image_seq_length", {"image_seq_length": 5}, {}),
        ("size", {}, {"size": {"height": 56, "width": 56}}),
    ],
)
def test_bad_files_name_the_field(field: str, config: dict[str, object], file: dict[str, object]):
    with pytest.raises(BadInput, match=field):
        settings_from(CONFIG | config, FILE | file)

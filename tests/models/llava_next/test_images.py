"""LLaVA-NeXT's preprocessing and token counts against transformers' processor."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlavaNextModel
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import unpad_image
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

from tests.models.pictures import PICTURES, check_boxes, reference
from vlm_edge.core.geometry import visual_token_count
from vlm_edge.errors import BadInput
from vlm_edge.models.llava_next.images import prepare, settings_from

PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
CONFIG = {"vision_config": {"image_size": 28, "patch_size": 7}, "image_grid_pinpoints": PINPOINTS}
FILE = {
    "image_processor_type": "LlavaNextImageProcessor",
    "size": {"shortest_edge": 28},
    "crop_size": {"height": 28, "width": 28},
    "image_grid_pinpoints": PINPOINTS,
    "do_pad": True,
}
SETTINGS = settings_from(CONFIG, FILE)
PUBLISHED = settings_from(
    {"vision_config": {"image_size": 336, "patch_size": 14}},
    {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
)
SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))


def processor(file: dict[str, object]) -> LlavaNextImageProcessorPil:
    return LlavaNextImageProcessorPil(**{key: value for key, value in file.items() if key != "image_processor_type"})


def tokens_by_transformers(image_processor: LlavaNextImageProcessorPil, patch_px: int, width: int, height: int) -> int:
    """The count of transformers' processor, called without a tokenizer."""
    self = SimpleNamespace(image_processor=image_processor, patch_size=patch_px, num_additional_image_tokens=1)
    self._get_unpadded_features = LlavaNextProcessor._get_unpadded_features.__get__(self)
    side = image_processor.size.shortest_edge
    return LlavaNextProcessor._get_number_of_features(self, height, width, side, side) - 1


@pytest.mark.parametrize("picture", PICTURES)
def test_pixels_equal_transformers(picture: str):
    image = PICTURES[picture]
    inputs = prepare(image, SETTINGS)
    expected = reference(processor(FILE), image)
    np.testing.assert_array_equal(inputs.arrays["pixel_values"], expected["pixel_values"][0])
    assert inputs.visual_tokens == tokens_by_transformers(processor(FILE), 7, image.shape[1], image.shape[0])
    check_boxes(inputs, image)


@pytest.mark.parametrize(("size", "tokens"), [((672, 672), 2928), ((640, 480), 2340), ((1920, 1080), 1948)])
def test_published_counts(size: tuple[int, int], tokens: int):
    assert visual_token_count(PUBLISHED.geometry, image_px=size) == tokens


@settings(max_examples=300, deadline=None)
@given(SIZES)
def test_counts_equal_transformers(size: tuple[int, int]):
    file = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    assert PUBLISHED.geometry.layout(size).visual_tokens == tokens_by_transformers(processor(file), 14, *size)


@settings(max_examples=60, deadline=None)
@given(SIZES)
def test_packed_features_are_as_many_and_the_unpadded_grid_is_right(size: tuple[int, int]):
    """transformers' own unpadding and packing of features whose values are their numbers."""
    layout = SETTINGS.geometry.layout(size)
    side = SETTINGS.geometry.grid[0]
    features = torch.arange(layout.views * side * side, dtype=torch.float32).reshape(layout.views, -1, 1)
    config = SimpleNamespace(vision_config=SimpleNamespace(image_size=28, patch_size=7), image_grid_pinpoints=PINPOINTS)
    packed, lengths = LlavaNextModel.pack_image_features(
        SimpleNamespace(config=config), [features], torch.tensor([size[::-1]]), "default", torch.tensor([-1.0])
    )
    rows, cols = layout.token_grid
    assert int(lengths[0]) == layout.visual_tokens
    assert int((packed[0] == -1).sum()) == rows
    canvas = torch.zeros(1, layout.rows * side, layout.cols * side)
    assert tuple(unpad_image(canvas, size[::-1]).shape[1:]) == (rows, cols)


def test_an_image_that_fills_the_canvas_loses_nothing():
    layout = PUBLISHED.geometry.layout((672, 672))
    assert (layout.rows, layout.cols, layout.views, layout.token_grid) == (2, 2, 5, (48, 48))
    assert layout.content == (0, 0, 672, 672)


def test_tiles_of_nothing_but_padding_have_a_box_without_area():
    geometry_file = FILE | {"image_grid_pinpoints": [[84, 84]]}
    config = CONFIG | {"image_grid_pinpoints": [[84, 84]]}
    inputs = prepare(PICTURES["tall strip"], settings_from(config, geometry_file))
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in inputs.boxes]
    assert areas.count(0) == 6


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("image_grid_pinpoints", {"image_grid_pinpoints": []}),
        ("image_grid_pinpoints", {"image_grid_pinpoints": [[28]]}),
        ("image_grid_pinpoints", {"image_grid_pinpoints": [[28, -28]]}),
        ("image_grid_pinpoints", {"image_grid_pinpoints": [[28, 30]]}),
        ("image_grid_pinpoints", {"image_grid_pinpoints": [[28, 28]]}),
        ("image_grid_pinpoints", {"image_grid_pinpoints": "28x28"}),
        ("crop_size", {"crop_size": 14}),
        ("size", {"size": {"shortest_edge": 14}, "crop_size": 14}),
        ("resample", {"resample": 7}),
    ],
)
def test_bad_files_name_the_field(field: str, change: dict[str, object]):
    with pytest.raises(BadInput, match=field):
        settings_from(CONFIG, FILE | change)


def test_pinpoints_in_one_file_only_count_for_both():
    only_config = {key: value for key, value in FILE.items() if key != "image_grid_pinpoints"}
    assert settings_from(CONFIG, only_config) == SETTINGS


@pytest.mark.parametrize("uneven", [[[30, 30]], [[28, 28], [28, 30]]])
def test_pinpoints_that_no_view_divides(uneven: list[list[int]]):
    with pytest.raises(BadInput, match=r"image_grid_pinpoints.*multiple"):
        settings_from(CONFIG | {"image_grid_pinpoints": uneven}, FILE | {"image_grid_pinpoints": uneven})

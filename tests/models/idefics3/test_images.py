"""Preprocessing, markers and token counts of Idefics3 and SmolVLM against transformers' processors."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.idefics3.image_processing_pil_idefics3 import (
    Idefics3ImageProcessorPil,
    get_resize_output_image_size,
)
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from tests.models.pictures import PICTURES, check_boxes
from vlm_edge.core.geometry import visual_token_count
from vlm_edge.errors import BadInput
from vlm_edge.models.idefics3.images import marker_texts, prepare, settings_from, with_markers

CONFIG = {"vision_config": {"image_size": 28, "patch_size": 7}, "scale_factor": 2}
FILE = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 28}, "resample": 1}
PUBLISHED = settings_from({"vision_config": {"image_size": 364, "patch_size": 14}}, {})
SMOLVLM = settings_from(
    {"vision_config": {"image_size": 512, "patch_size": 16}, "scale_factor": 4},
    {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
)
SIZES = st.tuples(st.integers(1, 4000), st.integers(1, 4000))
IMAGE = "<image>"


@pytest.mark.parametrize("kind", [Idefics3ImageProcessorPil, SmolVLMImageProcessorPil])
@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize(
    "change",
    [{}, {"do_image_splitting": False}, {"size": {"longest_edge": 28}}, {"size": {"longest_edge": 100}, "resample": 3}],
    ids=["split", "whole", "one tile", "no multiple"],
)
def test_pixels_equal_transformers(kind: type, picture: str, change: dict[str, object]):
    image = PICTURES[picture]
    file = FILE | change
    inputs = prepare(image, settings_from(CONFIG, file))
    out = kind(**file, return_row_col_info=True)([[image]], input_data_format="channels_last", return_tensors="np")
    np.testing.assert_array_equal(inputs.arrays["pixel_values"], out["pixel_values"][0])
    np.testing.assert_array_equal(inputs.arrays["pixel_attention_mask"], out["pixel_attention_mask"][0])
    assert ([[inputs.layout.rows]], [[inputs.layout.cols]]) == (out["rows"], out["cols"])
    check_boxes(inputs, image)


@settings(max_examples=300, deadline=None)
@given(SIZES)
def test_sizes_equal_transformers(size: tuple[int, int]):
    width, height = size
    stand_in = np.broadcast_to(np.uint8(0), (3, height, width))
    for longest, geometry in ((1456, PUBLISHED.geometry), (2048, SMOLVLM.geometry)):
        assert geometry.resized_px(size) == get_resize_output_image_size(stand_in, longest)[::-1]


@settings(max_examples=300, deadline=None)
@given(SIZES)
def test_markers_are_transformers_text(size: tuple[int, int]):
    for geometry in (PUBLISHED.geometry, SMOLVLM.geometry):
        layout = geometry.layout(size)
        rows, cols, tokens = layout.rows, layout.cols, geometry.tokens_per_view
        processor = SimpleNamespace(
            fake_image_token="<fake_token_around_image>", global_image_tag="<global-img>", image_token=IMAGE,
            image_seq_len=tokens,
        )  # fmt: skip
        text = Idefics3Processor.replace_image_token(processor, {"rows": [[rows]], "cols": [[cols]]}, 0)
        assert text == get_image_prompt_string(rows, cols, tokens, "<fake_token_around_image>", IMAGE, "<global-img>")
        assert (IMAGE * tokens).join(marker_texts(layout)) == text
        assert layout.visual_tokens == text.count(IMAGE)
        # A tokenizer that knows the markers, and two line feeds as one token.
        words = re.findall(r"<[^>]*>|\n+", text)
        assert visual_token_count(geometry, image_px=size) == len(words)


def test_markers_that_are_several_tokens_each():
    """A tokenizer without the row and column markers spells them out; two line feeds are two tokens for it."""
    geometry = with_markers(PUBLISHED.geometry, lambda text: len(re.findall(r"<fake\w+>|<global-img>|\w+|\W", text)))
    layout = geometry.layout((1456, 1456))
    spelled = 1 + len(["<", "row_1_col_1", ">"])
    assert geometry.tile_marker_tokens == spelled
    assert layout.marker_tokens == 16 * spelled + 4 + 1 + 3
    assert layout.visual_tokens == 17 * 169


@pytest.mark.parametrize("size", [(1, 2000), (3000, 7), (1, 1), (1, 4000), (5, 3999)])
def test_thin_images_keep_at_least_one_row_of_tiles(size: tuple[int, int]):
    layout = SMOLVLM.geometry.layout(size)
    assert layout.rows >= 1
    assert layout.cols >= 1
    assert layout.visual_tokens == (layout.rows * layout.cols + 1) * 64


def test_published_views():
    assert PUBLISHED.geometry.tokens_per_view == 169
    assert SMOLVLM.geometry.tokens_per_view == 64
    patches_left_over = {"vision_config": {"image_size": 384, "patch_size": 14}, "scale_factor": 3}
    assert settings_from(patches_left_over, {"max_image_size": {"longest_edge": 384}}).geometry.tokens_per_view == 81


@pytest.mark.parametrize(
    ("field", "config", "file"),
    [
        ("scale_factor", {"scale_factor": 3}, {}),
        ("max_image_size", {}, {"max_image_size": {"longest_edge": 56}}),
        ("max_image_size", {}, {"max_image_size": {"height": 28, "width": 28}}),
        ("longest_edge", {}, {"size": {"longest_edge": -1}}),
        ("size", {}, {"size": {"longest_edge": 10**9}}),
        ("do_image_splitting", {}, {"do_image_splitting": 1}),
        ("patch_size", {"vision_config": {"image_size": 28, "patch_size": 0}}, {}),
        ("image_processor_type", {}, {"image_processor_type": "Idefics2ImageProcessor"}),
    ],
)
def test_bad_files_name_the_field(field: str, config: dict[str, object], file: dict[str, object]):
    with pytest.raises(BadInput, match=field):
        settings_from(CONFIG | config, FILE | file)

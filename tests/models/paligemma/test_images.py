"""PaliGemma's preprocessing against transformers' SigLIP processor."""

from __future__ import annotations

import numpy as np
import pytest
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.models.pictures import PICTURES, check_boxes, reference
from vlm_edge.core.geometry import visual_token_count
from vlm_edge.errors import BadInput
from vlm_edge.models.paligemma.images import prepare, settings_from

CONFIG = {"vision_config": {"image_size": 70, "patch_size": 14}}
FILE = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 70, "width": 70}, "image_seq_length": 25}


@pytest.mark.parametrize("picture", PICTURES)
def test_pixels_equal_transformers(picture: str):
    image = PICTURES[picture]
    inputs = prepare(image, settings_from(CONFIG, FILE))
    expected = reference(SiglipImageProcessorPil(size=FILE["size"]), image)
    np.testing.assert_array_equal(inputs.arrays["pixel_values"], expected["pixel_values"])
    assert inputs.visual_tokens == 25
    check_boxes(inputs, image)


@pytest.mark.parametrize(("side", "tokens"), [(224, 256), (448, 1024), (896, 4096)])
def test_published_sizes(side: int, tokens: int):
    file = {"size": {"height": side, "width": side}, "image_seq_length": tokens, "do_convert_rgb": None}
    settings = settings_from({"vision_config": {"image_size": side, "patch_size": 14}}, file)
    assert visual_token_count(settings.geometry, image_px=(123, 45)) == tokens


def test_a_config_may_leave_224_px_out():
    assert settings_from({"vision_config": {"patch_size": 14}}, {}).geometry.view_px == 224


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("image_seq_length", {"image_seq_length": 24}),
        ("size", {"size": {"height": 70, "width": 71}}),
        ("size", {"size": {"height": 84, "width": 84}}),
        ("do_center_crop", {"do_center_crop": True}),
        ("image_processor_type", {"image_processor_type": "CLIPImageProcessor"}),
    ],
)
def test_bad_files_name_the_field(field: str, change: dict[str, object]):
    with pytest.raises(BadInput, match=field):
        settings_from(CONFIG, FILE | change)

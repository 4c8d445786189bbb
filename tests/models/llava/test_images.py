"""LLaVA's preprocessing against transformers' Pillow processors."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import vlm_edge
from tests.models.pictures import PICTURES, check_boxes, photo, reference
from vlm_edge.core.geometry import visual_token_count
from vlm_edge.errors import BadImage, BadInput
from vlm_edge.models.llava.images import prepare, settings_from
from vlm_edge.vision import resize
from vlm_edge.vision.sources import load_image

CONFIG = {"vision_config": {"image_size": 56, "patch_size": 14}}
CLIP = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 56},
    "crop_size": {"height": 56, "width": 56},
    "resample": 3,
}
PROCESSORS = {
    "clip": (CLIPImageProcessorPil, CLIP),
    "clip, shortest edge above the crop": (
        CLIPImageProcessorPil,
        CLIP | {"size": {"shortest_edge": 64}, "crop_size": 56},
    ),
    "clip, old file": (
        CLIPImageProcessorPil,
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 56, "crop_size": 56},
    ),
    "clip, squeezed": (CLIPImageProcessorPil, CLIP | {"size": {"height": 56, "width": 56}, "do_center_crop": False}),
    "dinov2": (
        BitImageProcessorPil,
        CLIP | {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 60}},
    ),
    "siglip": (
        SiglipImageProcessorPil,
        {"image_processor_type": "SiglipImageProcessor", "size": {"height": 56, "width": 56}, "resample": 2},
    ),
    "padded": (LlavaImageProcessorPil, CLIP | {"image_processor_type": "LlavaImageProcessorFast", "do_pad": True}),
    "not normalised": (CLIPImageProcessorPil, CLIP | {"do_normalize": False, "rescale_factor": 1 / 127.5}),
    "not rescaled": (CLIPImageProcessorPil, CLIP | {"do_rescale": False, "image_mean": [9, 8, 7], "image_std": 3.5}),
}
IGNORED = ("image_processor_type", "feature_extractor_type")


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_equal_transformers(name: str, picture: str):
    kind, file = PROCESSORS[name]
    image = PICTURES[picture]
    inputs = prepare(image, settings_from(CONFIG, file))
    expected = reference(kind(**{key: value for key, value in file.items() if key not in IGNORED}), image)
    assert inputs.arrays["pixel_values"].dtype == np.float32
    np.testing.assert_array_equal(inputs.arrays["pixel_values"], expected["pixel_values"])
    assert inputs.visual_tokens == 16
    assert inputs.layout.views == len(inputs.boxes) == 1


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("name", ["clip", "padded"])
def test_long_strips_need_no_large_picture_and_stay_equal(name: str, picture: str, monkeypatch: pytest.MonkeyPatch):
    """The way that huge intermediate pictures take, here for small ones too."""
    kind, file = PROCESSORS[name]
    monkeypatch.setattr(resize, "WHOLE_PX", 0)
    inputs = prepare(PICTURES[picture], settings_from(CONFIG, file))
    expected = reference(kind(**{key: value for key, value in file.items() if key not in IGNORED}), PICTURES[picture])
    np.testing.assert_array_equal(inputs.arrays["pixel_values"], expected["pixel_values"])


def test_padding_by_the_model_config():
    """LLaVA's own code pads to a square of the mean colour where config.json says so; transformers does it by do_pad."""
    image = PICTURES["photo"]
    padded = prepare(image, settings_from(CONFIG | {"image_aspect_ratio": "pad"}, CLIP))
    expected = reference(LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": 56}, crop_size=56), image)
    np.testing.assert_array_equal(padded.arrays["pixel_values"], expected["pixel_values"])
    assert padded.boxes == ((0, 0, 640, 427),)
    switched_off = CLIP | {"image_processor_type": "LlavaImageProcessor", "do_pad": False}
    assert settings_from(CONFIG | {"image_aspect_ratio": "pad"}, switched_off).background is None


def test_the_box_is_what_the_crop_keeps():
    inputs = prepare(photo(400, 200), settings_from(CONFIG, CLIP))
    assert inputs.boxes == ((100, 0, 300, 200),)
    squeezed = prepare(photo(400, 200), settings_from(CONFIG, PROCESSORS["siglip"][1]))
    check_boxes(squeezed, photo(400, 200))


@pytest.mark.parametrize("mode", ["RGBA", "L"])
def test_files_with_alpha_or_grey_equal_transformers_own_conversion(mode: str):
    picture = Image.fromarray(PICTURES["photo"]).convert(mode)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    pixels = load_image(stream.getvalue()).pixels
    inputs = prepare(pixels, settings_from(CONFIG, CLIP))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=56)
    expected = processor(Image.open(stream), return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(inputs.arrays["pixel_values"], expected)


def test_llava_1_5():
    """The published files of llava-hf/llava-1.5-7b-hf: 576 tokens for any image."""
    file = CLIP | {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "do_convert_rgb": True}
    settings = settings_from({"vision_config": {"image_size": 336, "patch_size": 14}}, file)
    assert [visual_token_count(settings.geometry, image_px=size) for size in ((1, 1), (3000, 7))] == [576, 576]


def test_the_embedded_model():
    """Its own files: squeezed to 112 px, 64 tokens."""
    nano = Path(vlm_edge.__file__).parent / "nano"
    config, file = (json.loads((nano / f"{name}.json").read_text()) for name in ("config", "preprocessor_config"))
    inputs = prepare(PICTURES["photo"], settings_from(config, file))
    assert inputs.arrays["pixel_values"].shape == (1, 3, 112, 112)
    assert inputs.visual_tokens == 64


BAD_FILES = [
    ("resample", {"resample": 9}),
    ("resample", {"resample": 0}),
    ("resample", {"resample": [3]}),
    ("size", {"size": {"shortest_edge": -56}}),
    ("size", {"size": {"height": 56, "width": 57}, "do_center_crop": False}),
    ("size", {"size": {"height": 28, "width": 28}, "do_center_crop": False}),
    ("size", {"size": "56"}),
    ("size", {"size": {"shortest_edge": 56, "longest_edge": 70}}),
    ("do_center_crop", {"do_center_crop": False}),
    ("crop_size", {"crop_size": 60}),
    ("crop_size", {"size": {"height": 56, "width": 56}, "crop_size": 42}),
    ("do_pad", {"do_pad": True}),
    ("do_resize", {"do_resize": False}),
    ("do_reduce_labels", {"do_reduce_labels": True}),
    ("do_rescale", {"do_rescale": "yes"}),
    ("image_mean", {"image_mean": [0.5, 0.5]}),
    ("image_mean", {"image_mean": [0.5, 0.5, float("nan")]}),
    ("image_std", {"image_std": [0.5, 0.0, 0.5]}),
    ("rescale_factor", {"rescale_factor": 0}),
    ("image_processor_type", {"image_processor_type": "VitMatteImageProcessor"}),
]


@pytest.mark.parametrize(("field", "change"), BAD_FILES)
def test_bad_files_name_the_field(field: str, change: dict[str, object]):
    with pytest.raises(BadInput, match=field) as caught:
        settings_from(CONFIG, CLIP | change)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("patch_size", {"vision_config": {"image_size": 56}}),
        ("patch_size", {"vision_config": {"image_size": 56, "patch_size": 57}}),
        ("patch_size", {"vision_config": {"image_size": 56, "patch_size": 14.0}}),
        ("patch_size", {"vision_config": {"image_size": 56, "patch_size": True}}),
        ("vision_config", {"vision_config": []}),
        ("image_aspect_ratio", CONFIG | {"image_aspect_ratio": "anyres"}),
        ("image_aspect_ratio", CONFIG | {"image_aspect_ratio": ["pad"]}),
    ],
)
def test_bad_configs_name_the_field(field: str, config: dict[str, object]):
    with pytest.raises(BadInput, match=field):
        settings_from(config, CLIP)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
    ],
)
def test_what_is_no_image_is_refused(array: np.ndarray):
    with pytest.raises(BadImage):
        prepare(array, settings_from(CONFIG, CLIP))


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings_from(CONFIG, CLIP).resample = 1  # type: ignore[misc]


def test_the_frame_of_a_padded_or_cropped_view_is_what_it_spans() -> None:
    wide = photo(400, 200)
    padded = prepare(wide, settings_from(CONFIG, PROCESSORS["padded"][1]))
    assert padded.frame == (0, -100, 400, 300)
    tall = prepare(photo(200, 401), settings_from(CONFIG, PROCESSORS["padded"][1]))
    assert tall.frame == (-100, 0, 301, 401)  # of an odd rest, the smaller half comes first
    cropped = prepare(wide, settings_from(CONFIG, CLIP))  # 112 x 56 px, of which the middle 56 columns are kept
    assert cropped.frame == (100, 0, 300, 200)
    squeezed = prepare(wide, settings_from(CONFIG, PROCESSORS["clip, squeezed"][1]))
    assert squeezed.frame == (0, 0, 400, 200)

"""Idefics2's preprocessing and token counts against transformers' processor and vision embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Idefics2VisionConfig
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionEmbeddings

from tests.models.pictures import PICTURES, check_boxes, photo
from vlm_edge.core.geometry import visual_token_count
from vlm_edge.errors import BadInput
from vlm_edge.models.idefics2.images import position_ids, prepare, settings_from

CONFIG = {"vision_config": {"image_size": 98, "patch_size": 7}, "perceiver_config": {"resampler_n_latents": 8}}
FILE = {"size": {"shortest_edge": 38, "longest_edge": 98}, "resample": 2}


def by_transformers(file: dict[str, object], image: np.ndarray) -> dict[str, np.ndarray]:
    out = Idefics2ImageProcessorPil(**file)([[image]], input_data_format="channels_last", return_tensors="np")
    return {name: value[0] for name, value in out.items()}


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("picture", PICTURES)
def test_pixels_and_masks_equal_transformers(picture: str, split: bool):
    image = PICTURES[picture]
    file = FILE | {"do_image_splitting": split}
    if split and min(image.shape[:2]) < 2:
        with pytest.raises(BadInput, match="cut in four"):
            prepare(image, settings_from(CONFIG, file))
        return
    inputs = prepare(image, settings_from(CONFIG, file))
    expected = by_transformers(file, image)
    np.testing.assert_array_equal(inputs.arrays["pixel_values"], expected["pixel_values"])
    np.testing.assert_array_equal(inputs.arrays["pixel_attention_mask"], expected["pixel_attention_mask"])
    assert inputs.arrays["pixel_values"].shape[:1] == (5 if split else 1,)
    assert inputs.arrays["pixel_values"].shape[-2:] == inputs.layout.canvas_px[::-1]
    check_boxes(inputs, image)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("picture", ["photo", "noise", "wide strip", "tiny"])
def test_patch_masks_and_positions_equal_the_towers(picture: str, split: bool):
    """Idefics2Model's patch mask, and the rows that its embeddings then look up."""
    inputs = prepare(PICTURES[picture], settings_from(CONFIG, FILE | {"do_image_splitting": split}))
    windows = torch.from_numpy(inputs.arrays["pixel_attention_mask"]).long().unfold(1, 7, 7).unfold(2, 7, 7)
    mask = windows.sum((-1, -2)) == 49
    np.testing.assert_array_equal(inputs.arrays["patch_attention_mask"], mask.numpy())
    np.testing.assert_array_equal(inputs.arrays["position_ids"], looked_up(mask, 98))


def looked_up(mask: torch.Tensor, image_px: int) -> np.ndarray:
    config = Idefics2VisionConfig(hidden_size=4, image_size=image_px, patch_size=7, num_attention_heads=1)
    embeddings = Idefics2VisionEmbeddings(config)
    seen: list[torch.Tensor] = []
    embeddings.position_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    views, rows, cols = mask.shape
    embeddings(torch.zeros(views, 3, rows * 7, cols * 7), patch_attention_mask=mask)
    return seen[0].numpy()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 5), st.integers(0, 5), st.sampled_from([70, 14, 33]))
def test_positions_of_any_grid(rows: int, cols: int, below: int, right: int, side: int):
    # No view has more patches than the table has places; beyond that, ties are decided by how torch.arange rounds.
    rows, cols = min(rows, side), min(cols, side)
    mask = np.zeros((1, rows + below, cols + right), bool)
    mask[0, :rows, :cols] = True
    np.testing.assert_array_equal(position_ids(mask, side), looked_up(torch.from_numpy(mask), side * 7))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 1200), st.integers(1, 1200))
def test_view_sizes_equal_transformers(width: int, height: int):
    geometry = settings_from(CONFIG, FILE).geometry
    expected = by_transformers(FILE, np.zeros((height, width, 3), np.uint8))["pixel_values"].shape
    assert geometry.layout((width, height)).canvas_px == expected[:0:-1][:2]


def test_counts():
    """transformers' prompt: a boundary before and after each image, adjacent ones merged, 64 latents an image."""
    published = {"vision_config": {"image_size": 980, "patch_size": 14}}
    whole, split = (settings_from(published, {"do_image_splitting": on}).geometry for on in (False, True))
    text = "<fake>" + "<image>" * 64 + "<fake>"
    for geometry, prompt in ((whole, text), (split, (text * 5).replace("<fake><fake>", "<fake>"))):
        layout = geometry.layout((3000, 7))
        assert layout.visual_tokens == prompt.count("<image>")
        assert layout.marker_tokens == prompt.count("<fake>")
        assert visual_token_count(geometry, image_px=(3000, 7), images=2) == 2 * prompt.count("<")


def test_quarters_of_odd_sizes_cover_the_image():
    inputs = prepare(photo(101, 75), settings_from(CONFIG, FILE | {"do_image_splitting": True}))
    assert inputs.boxes[:4] == ((0, 0, 50, 37), (50, 0, 101, 37), (0, 37, 50, 75), (50, 37, 101, 75))


@pytest.mark.parametrize(
    ("field", "config", "file"),
    [
        ("longest_edge", {}, {"size": {"shortest_edge": 98, "longest_edge": 38}}),
        ("size", {}, {"size": {"height": 98, "width": 38}}),
        ("size", {}, {"size": 98}),
        ("patch_size", {"vision_config": {"image_size": 98, "patch_size": 39}}, {}),
        ("patch_size", {"vision_config": {}}, {}),
        ("resampler_n_latents", {"perceiver_config": {"resampler_n_latents": 0}}, {}),
        ("resample", {}, {"resample": "bilinear"}),
    ],
)
def test_bad_files_name_the_field(field: str, config: dict[str, object], file: dict[str, object]):
    with pytest.raises(BadInput, match=field):
        settings_from(CONFIG | config, FILE | file)

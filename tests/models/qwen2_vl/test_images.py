"""Qwen2-VL's patches and tower indices against transformers' processor and tower."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from tests.models.pictures import photo, reference
from vlm_edge.errors import BadInput
from vlm_edge.models.qwen2_vl.images import pack, prepare, settings_from

SIZES = [(150, 90), (60, 230), (29, 1)]
FILES = {
    "published": {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2},
    "limits in size": {"size": {"min_pixels": 3136, "max_pixels": 12845056}},
    "edges": {"size": {"shortest_edge": 3136, "longest_edge": 12845056}},
}


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_several_images_equal_transformers(file: dict[str, object]):
    config = settings_from({}, file)
    images = [photo(*size) for size in SIZES]
    packed = pack([prepare(image, config) for image in images], config)
    expected = reference(Qwen2VLImageProcessorPil(), *images)
    np.testing.assert_array_equal(packed["pixel_values"], expected["pixel_values"])
    assert set(packed) == {"pixel_values", "position_ids", "cu_seqlens"}


def test_the_tower_computes_the_same_with_our_indices():
    torch.manual_seed(0)
    tower = Qwen2VisionTransformerPretrainedModel(
        Qwen2VLVisionConfig(depth=2, embed_dim=32, hidden_size=16, num_heads=2)
    )
    config = settings_from({}, {})
    images = [prepare(photo(*size), config) for size in SIZES]
    packed = {name: torch.from_numpy(array) for name, array in pack(images, config).items()}
    pixels = packed.pop("pixel_values")
    grids = torch.tensor([image.layout.grid_thw for image in images])
    with torch.no_grad():
        own = tower.eval()(pixels, grid_thw=grids).pooler_output
        ours = tower(pixels, grid_thw=torch.zeros_like(grids), **packed).pooler_output
    assert torch.equal(own, ours)


@pytest.mark.parametrize(
    ("config", "file", "frames", "patch"),
    [
        ({}, {}, 2, 14),
        (
            {"vision_config": {"patch_size": 7, "temporal_patch_size": 1}},
            {"patch_size": 7, "temporal_patch_size": 1},
            1,
            7,
        ),
    ],
)
def test_other_patches(config: dict[str, object], file: dict[str, object], frames: int, patch: int):
    image = photo(100, 70)
    got = prepare(image, settings_from(config, file)).arrays["pixel_values"]
    processor = Qwen2VLImageProcessorPil(patch_size=patch, temporal_patch_size=frames)
    np.testing.assert_array_equal(got, reference(processor, image)["pixel_values"])
    assert got.shape[1] == 3 * frames * patch * patch


@pytest.mark.parametrize("field", ["patch_size", "merge_size", "temporal_patch_size", "min_pixels", "max_pixels"])
@pytest.mark.parametrize("value", [0, -14, 2.0, "14", True])
def test_bad_numbers_name_the_field(field: str, value: object):
    with pytest.raises(BadInput, match=field):
        settings_from({}, {field: value})

"""The images on which a vision graph is traced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vlm_edge.errors import DamagedInstallation
from vlm_edge.models.idefics2 import images as idefics2
from vlm_edge.models.qwen2_vl import images as qwen2_vl
from vlm_edge.pipeline.exporting import example_inputs

EDGES = {"size": {"shortest_edge": 30, "longest_edge": 56}}


def test_the_images_are_the_same_on_every_call_and_never_large():
    images = example_inputs.example_images()
    assert len(images) == example_inputs.IMAGES
    assert max(max(image.shape) for image in images) == example_inputs.LONGEST_PX
    for image, again in zip(images, example_inputs.example_images(), strict=True):
        np.testing.assert_array_equal(image, again)


def test_two_images_of_different_sizes_share_a_call_as_two_views():
    settings = idefics2.settings_from({"vision_config": {"image_size": 56, "patch_size": 7}}, EDGES)
    names = ("pixel_values", "pixel_attention_mask")
    inputs = example_inputs.tower_inputs(idefics2, settings, names)
    alone = [idefics2.prepare(image, settings).arrays for image in example_inputs.example_images()]
    assert len(inputs) == len(alone) - 1
    for row, arrays in enumerate(alone[:2]):
        _, height, width = arrays["pixel_attention_mask"].shape
        assert inputs[0]["pixel_attention_mask"][row].sum() == arrays["pixel_attention_mask"].sum()
        np.testing.assert_array_equal(inputs[0]["pixel_values"][row, :, :height, :width], arrays["pixel_values"][0])
    for given, arrays in zip(inputs[1:], alone[2:], strict=True):
        assert {*given} == {*names}
        np.testing.assert_array_equal(given["pixel_values"], arrays["pixel_values"])


def test_a_row_of_patches_is_packed_by_the_family():
    settings = qwen2_vl.settings_from({}, {"max_pixels": 100 * 784})
    inputs = example_inputs.tower_inputs(qwen2_vl, settings, ("pixel_values", "cu_seqlens"))
    two = [qwen2_vl.prepare(image, settings) for image in example_inputs.example_images()[:2]]
    lengths = [len(one.arrays["pixel_values"]) for one in two]
    assert inputs[0]["cu_seqlens"].tolist() == [0, lengths[0], sum(lengths)]
    assert [len(given["cu_seqlens"]) for given in inputs[1:]] == [2] * (example_inputs.IMAGES - 2)


def test_missing_pages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(example_inputs, "resource_dir", lambda _: tmp_path)
    with pytest.raises(DamagedInstallation, match="0 pages, not 5"):
        example_inputs.example_images()

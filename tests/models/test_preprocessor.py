"""Reading the two files of a checkpoint: whatever they hold, the answer is settings or BadInput that names a field."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_edge.core.geometry import visual_token_count
from vlm_edge.errors import BadInput
from vlm_edge.models.fields import Fields
from vlm_edge.models.preprocessor import size_pairs, square_size

COMMON = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "resample": 3}
COLOURS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
FILES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llava": (
        {"vision_config": {"image_size": 56, "patch_size": 14}, "image_aspect_ratio": "square"},
        {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}, "do_center_crop": True, "do_pad": False},
    ),
    "llava_next": (
        {"vision_config": {"image_size": 28, "patch_size": 14}, "image_grid_pinpoints": [[28, 56]]},
        {"size": {"shortest_edge": 28}, "crop_size": 28, "image_grid_pinpoints": [[28, 56]]},
    ),
    "internvl": (
        {"vision_config": {"image_size": [28, 28], "patch_size": [14, 14]}, "downsample_ratio": 0.5, "image_seq_length": 1},
        {"size": {"height": 28, "width": 28}, "min_patches": 1, "max_patches": 6},
    ),
    "idefics2": (
        {"vision_config": {"image_size": 70, "patch_size": 14}, "perceiver_config": {"resampler_n_latents": 4}},
        {"size": {"shortest_edge": 28, "longest_edge": 70}, "do_image_splitting": True},
    ),
    "idefics3": (
        {"vision_config": {"image_size": 28, "patch_size": 14}, "scale_factor": 2},
        {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 28}, "do_image_splitting": True},
    ),
    "paligemma": (
        {"vision_config": {"image_size": 28, "patch_size": 14}},
        {"size": {"height": 28, "width": 28}, "image_seq_length": 4},
    ),
    "qwen2_vl": (
        {"vision_config": {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}},
        {"min_pixels": 3136, "max_pixels": 313600, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2},
    ),
    "qwen2_5_vl": (
        {"vision_config": {"window_size": 112}},
        {"size": {"shortest_edge": 3136, "longest_edge": 313600}},
    ),
}  # fmt: skip
FAMILIES = {name: importlib.import_module(f"vlm_edge.models.{name}.images") for name in FILES}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 4000) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["height", "width", "longest_edge"]), inner)
    ),
    max_leaves=4,
)


@pytest.mark.parametrize("family", FILES)
def test_complete_files_are_read(family: str):
    config, file = FILES[family]
    found = FAMILIES[family].settings_from(config, COMMON | COLOURS | file)
    assert visual_token_count(found.geometry, image_px=(64, 48)) >= 1


@pytest.mark.parametrize("family", FILES)
@settings(max_examples=80, deadline=None)
@given(st.data())
def test_anything_else_is_settings_or_an_error_that_names_the_field(family: str, data: st.DataObject):
    config, file = FILES[family]
    file = COMMON | COLOURS | file
    places = [*file, *config, *(f"vision_config.{key}" for key in config["vision_config"])]
    place = data.draw(st.sampled_from(places))
    value = data.draw(JSON)
    changed_file, changed_config = dict(file), dict(config)
    if "." in place:
        changed_config["vision_config"] = {**config["vision_config"], place.partition(".")[2]: value}
    else:
        (changed_file if place in file else changed_config)[place] = value
    try:
        geometry = FAMILIES[family].settings_from(changed_config, changed_file).geometry
    except BadInput as error:
        named = error.message.startswith(("preprocessor_config.json: ", "config.json: "))
    else:
        named = visual_token_count(geometry, image_px=(64, 48)) >= 1
    assert named


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("llava", "rescale_factor", 10**400),
        ("llava", "image_mean", [0.5, 0.5, 10**400]),
        ("llava", "image_mean", float("inf")),
        ("llava", "image_std", 1e-320),
        ("internvl", "downsample_ratio", 1e-320),
    ],
)
def test_numbers_that_overflow_are_refused(family: str, field: str, value: object):
    config, file = FILES[family]
    with pytest.raises(BadInput, match=field):
        FAMILIES[family].settings_from(config | {field: value}, COMMON | file | {field: value})


@pytest.mark.parametrize(
    ("value", "side"),
    [(28, 28), ([28, 28], 28), ({"height": 28, "width": 28}, 28), ({"shortest_edge": 28}, 28), (None, 9)],
)
def test_squares_in_every_spelling(value: object, side: int):
    assert square_size(Fields({"size": value}), "size", 9) == side


@pytest.mark.parametrize("value", [{"height": 28}, {"height": 28, "width": 27}, {}, {"longest_edge": 28}, [28], True])
def test_no_squares(value: object):
    with pytest.raises(BadInput, match="size"):
        square_size(Fields({"size": value}), "size", 9)


def test_pairs_turn_round():
    assert size_pairs(Fields({}), "pinpoints", [[1, 2], (3, 4)]) == ((2, 1), (4, 3))

"""What a caller may choose: the ranges, and how choices and a bundle's defaults make a Look."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from vlm_edge.core import discover
from vlm_edge.core.bundle import RunDefaults
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.answering.options import REDUCTIONS, TILINGS, AskOptions, Look
from vlm_edge.tokens.reduce import REDUCERS

LLAVA = discover.family("llava")
DEFAULTS = RunDefaults(tiling="auto", reduce="threshold", threshold=0.9, keep=0.25)


@pytest.mark.parametrize(
    "fine",
    [
        {},
        {"tiling": "grid", "max_tiles": 0, "max_new_tokens": 1, "max_pixels": 1, "seed": 0},
        {"keep": 1.0, "threshold": 1, "top_p": 1e-9, "temperature": 0.0},
        {"temperature": 1e300, "stop": ("a", " ")},
        {"max_tiles": np.int64(3), "keep": np.float32(0.5), "temperature": 1, "seed": np.uint8(1)},
    ],
)
def test_values_at_the_ends_of_their_range_are_fine(fine: dict[str, Any]) -> None:
    AskOptions(**fine)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"tiling": "girds"}, "--tiling"),
        ({"tiling": ""}, "--tiling"),
        ({"reduce": "zip"}, "--reduce"),
        ({"max_tiles": -1}, "--max-tiles"),
        ({"max_new_tokens": 0}, "--max-new-tokens"),
        ({"max_pixels": 0}, "--max-pixels"),
        ({"seed": -1}, "--seed"),
        ({"keep": 0.0}, "--keep"),
        ({"keep": 1.001}, "--keep"),
        ({"threshold": -0.5}, "--threshold"),
        ({"top_p": 0}, "--top-p"),
        ({"temperature": -1e-9}, "--temperature"),
        ({"stop": ("a", "")}, "--stop"),
        ({"stop": ""}, "--stop"),
        ({"stop": ("a", 3)}, "--stop"),
        ({"stop": None}, "--stop"),
        ({"stop": b"ab"}, "--stop"),
        ({"tiling": 3}, "--tiling"),
        ({"reduce": ["none"]}, "--reduce"),
        ({"max_tiles": 2.5}, "--max-tiles"),
        ({"max_tiles": 2.0}, "--max-tiles"),
        ({"max_tiles": True}, "--max-tiles"),
        ({"max_tiles": "2"}, "--max-tiles"),
        ({"max_new_tokens": 1.5}, "--max-new-tokens"),
        ({"max_pixels": math.inf}, "--max-pixels"),
        ({"seed": math.nan}, "--seed"),
        ({"keep": "0.5"}, "--keep"),
        ({"threshold": True}, "--threshold"),
        ({"temperature": "hot"}, "--temperature"),
        ({"temperature": None}, "--temperature"),
        *(({name: math.nan}, "--") for name in ("keep", "threshold", "top_p", "temperature")),
        *(({name: math.inf}, "--") for name in ("keep", "threshold", "top_p", "temperature")),
    ],
)
def test_values_outside_their_range_name_the_option_and_a_remedy(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput) as caught:
        AskOptions(**wrong)
    assert named in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(("given", "kept"), [("abc", ("abc",)), (["a", "b"], ("a", "b")), ((), ())])
def test_one_stop_string_need_not_be_a_tuple(given: Any, kept: tuple[str, ...]) -> None:
    options = AskOptions(stop=given)
    assert options.stop == kept
    assert hash(options) == hash(AskOptions(stop=kept))


@pytest.mark.parametrize(("name", "hint"), [("gird", "'grid'"), ("zzz", "auto, grid, none")])
def test_a_misspelt_tiling_is_answered_with_the_nearest_or_all(name: str, hint: str) -> None:
    with pytest.raises(BadInput) as caught:
        AskOptions(tiling=name)
    assert hint in caught.value.remedy


def test_every_reduction_that_may_be_named_exists() -> None:
    # visionzip needs the class token's attention, which no exported graph gives
    assert {*REDUCTIONS, "visionzip"} == set(REDUCERS)


def test_without_choices_a_look_is_the_bundles() -> None:
    assert Look.of(AskOptions(), DEFAULTS, 6, LLAVA) == Look("auto", 6, "threshold", 1.0, 0.9, 0, saliency="detail")


def test_choices_come_before_defaults() -> None:
    options = AskOptions(tiling="grid", max_tiles=2, reduce="random", keep=0.5, threshold=0.7, seed=3)
    assert Look.of(options, DEFAULTS, 6, LLAVA) == Look("grid", 2, "random", 0.5, 1.0, 3)


@pytest.mark.parametrize(
    ("reduce", "read"),
    [("none", set()), ("threshold", {"threshold"}), ("random", {"keep", "seed"}), ("downsample", {"keep"})],
)
def test_numbers_that_a_reduction_does_not_read_make_no_other_look(reduce: str, read: set[str]) -> None:
    plain = Look.of(AskOptions(reduce=reduce), DEFAULTS, 6, LLAVA)
    changed = {"keep": 0.75, "threshold": 0.5, "seed": 9}
    looks = {
        name: Look.of(AskOptions(reduce=reduce, **{name: value}), DEFAULTS, 6, LLAVA) for name, value in changed.items()
    }
    assert {name for name, look in looks.items() if look != plain} == read


def test_zero_tiles_are_a_choice_and_not_the_default() -> None:
    assert Look.of(AskOptions(max_tiles=0), DEFAULTS, 6, LLAVA).max_tiles == 0


def test_without_tiling_there_are_no_tiles() -> None:
    assert Look.of(AskOptions(tiling="none"), DEFAULTS, 6, LLAVA).max_tiles == 0
    assert Look.of(AskOptions(), RunDefaults(tiling="none"), 6, LLAVA).max_tiles == 0


@pytest.mark.parametrize("tiling", TILINGS)
def test_more_tiles_than_planned_for_are_refused(tiling: str) -> None:
    assert Look.of(AskOptions(tiling=tiling, max_tiles=6), DEFAULTS, 6, LLAVA).max_tiles in (0, 6)
    with pytest.raises(BadInput, match="exceeds this bundle's limit") as caught:
        Look.of(AskOptions(tiling=tiling, max_tiles=7), DEFAULTS, 6, LLAVA)
    assert "6" in caught.value.remedy


@pytest.mark.parametrize("options", [{"max_tiles": 2}, {"tiling": "auto"}, {"saliency": "novelty"}])
def test_a_bundle_without_tiles_says_how_to_get_some(options: dict[str, Any]) -> None:
    """As export leaves one that may lay them anywhere, until a recipe says how many fit."""
    with pytest.raises(BadInput, match=r"limit|no tiles") as caught:
        Look.of(AskOptions(**options), OWN, 0, LLAVA)
    assert "build MODEL OUT --recipe" in caught.value.remedy
    assert Look.of(AskOptions(tiling="auto", max_tiles=0), OWN, 0, LLAVA).max_tiles == 0
    assert Look.of(AskOptions(), OWN, 0, LLAVA).max_tiles == 0
    with pytest.raises(BadInput, match="limit") as caught:
        Look.of(AskOptions(max_tiles=2), OWN, 0, QWEN)
    assert "leave --max-tiles out" in caught.value.remedy


INTERNVL, QWEN = discover.family("internvl"), discover.family("qwen2_vl")
OWN = RunDefaults(tiling="grid")


def test_a_family_with_rules_of_its_own_has_grid_and_none() -> None:
    assert Look.of(AskOptions(), OWN, 12, INTERNVL) == Look("grid", 12, "none", 1.0, 1.0, 0)
    assert Look.of(AskOptions(tiling="none"), OWN, 12, INTERNVL).whole
    assert Look.of(AskOptions(max_tiles=0), OWN, 12, INTERNVL).whole
    assert not Look.of(AskOptions(), OWN, 0, QWEN).whole


@pytest.mark.parametrize("options", [{"tiling": "auto"}, {"tiles": ((0, 0, 9, 9),)}])
def test_and_no_tiles_elsewhere(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"rules of its own|rules of their own") as caught:
        Look.of(AskOptions(**options), OWN, 12, discover.family("paligemma"))
    assert "--tiling grid" in caught.value.remedy


def test_or_the_most_salient_tiles_of_its_own_grid() -> None:
    chosen = Look.of(AskOptions(tiling="auto", max_tiles=3), OWN, 12, INTERNVL)
    assert chosen == Look("auto", 3, "none", 1.0, 1.0, 0, saliency="detail")
    assert chosen.chooses
    assert Look.of(AskOptions(saliency="novelty"), OWN, 12, QWEN).tiling == "auto"
    with pytest.raises(BadInput, match="rules of their own"):
        Look.of(AskOptions(tiles=((0, 0, 9, 9),)), OWN, 12, INTERNVL)
    assert not Look.of(AskOptions(tiling="auto", max_tiles=0), OWN, 12, INTERNVL).chooses


@pytest.mark.parametrize("reduce", ["threshold", "random", "downsample"])
def test_visual_tokens_that_are_fixed_in_the_prompt_stay_as_they_are(reduce: str) -> None:
    for family in (QWEN, discover.family("qwen2_5_vl"), discover.family("idefics2")):
        with pytest.raises(BadInput, match=f"fixed number and order.*{reduce}") as caught:
            Look.of(AskOptions(reduce=reduce), OWN, 12, family)
        assert "--reduce none" in caught.value.remedy
    assert Look.of(AskOptions(reduce=reduce), OWN, 12, INTERNVL).reduce == reduce

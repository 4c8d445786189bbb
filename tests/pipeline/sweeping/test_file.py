"""Sweep files: what they come to, and everything that is refused before a bundle is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from vlm_edge.core import discover
from vlm_edge.core.bundle import Limits, RunDefaults
from vlm_edge.errors import BadInput, DamagedBundle
from vlm_edge.pipeline.answering.options import AskOptions
from vlm_edge.pipeline.sweeping.file import Point, load_sweep, open_bundles, points_of

DEFAULTS = RunDefaults(tiling="auto", reduce="threshold", threshold=0.95, keep=0.5)


def bundle(family: str = "llava", name: str = "one", **defaults: Any) -> Any:
    manifest = SimpleNamespace(
        name=name, defaults=replace(DEFAULTS, **defaults), limits=Limits(6, 768), model=SimpleNamespace(family=family)
    )
    return SimpleNamespace(manifest=manifest)


def points(tmp_path: Path, *blocks: dict[str, Any], bundles: dict[str, Any] | None = None, **other: Any) -> list[Point]:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"points": list(blocks), **other}))
    return list(points_of(load_sweep(path), path, bundles or {"one": bundle()}, AskOptions(max_new_tokens=9)))


def test_a_block_is_the_product_of_its_lists_less_what_is_the_same(tmp_path: Path) -> None:
    found = points(
        tmp_path,
        {"tiling": ["auto", "none"], "max_tiles": [2, 4], "reduce": ["none", "tome"], "keep": [0.5, 0.25]},
        {"tiling": ["auto"], "max_tiles": [4], "reduce": ["tome"], "keep": [0.25]},
    )
    assert [point.label for point in found] == [
        "salient, 2 tiles, every token",
        "salient, 2 tiles, tome 0.5",
        "salient, 2 tiles, tome 0.25",
        "salient, 4 tiles, every token",
        "salient, 4 tiles, tome 0.5",
        "salient, 4 tiles, tome 0.25",
        "global view only, every token",
        "global view only, tome 0.5",
        "global view only, tome 0.25",
    ]
    assert {point.options.max_new_tokens for point in found} == {9}
    assert [point.is_baseline for point in found] == [False] * 6 + [True] * 3


def test_empty_lists_are_the_bundles_own_way(tmp_path: Path) -> None:
    two = {"int4": bundle(), "fp32": bundle(name="two", reduce="none")}
    found = points(tmp_path, {}, {"max_tiles": [1], "bundles": ["fp32"], "name": "small"}, bundles=two)
    assert [point.label for point in found] == [
        "salient, 6 tiles, threshold 0.95, int4",
        "salient, 6 tiles, every token, fp32",
        "small: salient, 1 tile, every token, fp32",
    ]
    assert [point.bundle for point in found] == ["int4", "fp32", "fp32"]


def test_saliency_is_for_the_tilings_that_read_it_and_own_tiles_for_none(tmp_path: Path) -> None:
    found = points(
        tmp_path,
        {"tiling": ["auto", "grid"], "saliency": ["cnn"], "reduce": ["none"]},
        {"own_tiles": True, "reduce": ["random"], "keep": [1], "seed": [0, 3]},
    )
    assert [point.label for point in found] == [
        "salient, 6 tiles by cnn, every token",
        "grid order, 6 tiles, every token",
        "each row's own tiles, random 1",
        "each row's own tiles, random 1 seed 3",
    ]
    assert [point.own_tiles for point in found] == [False, False, True, True]


@pytest.mark.parametrize(
    ("content", "says", "hint"),
    [
        ("points: [{reduse: [tome]}]", "points.0.reduse", "did you mean 'reduce'?"),
        ("point: []", "point", "did you mean 'points'?"),
        ("points: []", "points is empty", "give one block"),
        ("points: 3", "points", "correct"),
        ("points: [{reduce: tome}]", "points.0.reduce", "correct"),
        ("points: [{keep: ['0.5'], reduce: [tome]}]", "points.0.keep.0", "correct"),
        ("points: [{keep: [0], reduce: [tome]}]", "points.0: --keep 0.0 is not allowed", "above 0 and at most 1"),
        ("points: [{keep: [1.5], reduce: [tome]}]", "points.0: --keep 1.5 is not allowed", "above 0 and at most 1"),
        ("points: [{keep: [.nan], reduce: [tome]}]", "points.0", ""),
        ("points: [{}, {threshold: [-1], reduce: [threshold]}]", "points.1: --threshold -1", "above 0"),
        ("points: [{max_tiles: [-1]}]", "points.0: --max-tiles -1 is not allowed", "use 0 or more"),
        ("points: [{max_tiles: [7]}]", "points.0: --max-tiles 7 exceeds", "use 6 tiles or fewer"),
        ("points: [{reduce: [tome2]}]", "points.0: --reduce has no value 'tome2'", "did you mean 'tome'?"),
        ("points: [{tiling: [salient]}]", "points.0: --tiling has no value 'salient'", "use one of"),
        ("points: [{keep: [0.5], reduce: [threshold, none]}]", "none of reduce reads keep", "tome"),
        ("points: [{threshold: [0.5], reduce: [tome]}]", "none of reduce reads threshold", "threshold would"),
        ("points: [{seed: [1], reduce: [tome]}]", "none of reduce reads seed", "random would"),
        ("points: [{tiling: [none], max_tiles: [2]}]", "none of tiling reads max_tiles", "auto or grid"),
        ("points: [{tiling: [grid], saliency: [cnn]}]", "none of tiling reads saliency", "auto would"),
        ("points: [{own_tiles: true, tiling: [auto]}]", "own_tiles leaves tiling", "drop those"),
        ("points: [{bundles: [on]}]", "points.0.bundles.0", "correct"),  # YAML's on is no text
        ("points: [{bundles: [ones]}]", "points.0: no bundle is called 'ones'", "did you mean one?"),
        ("points: [{}]\nwinner: {within_points: -1}", "winner.within_points is -1", "0 to 100"),
        ("points: [{}]\nwinner: {by: intervall}", "winner.by has no value 'intervall'", "did you mean interval?"),
        ("points: [{}]\nbundles: [a]", "bundles", "correct"),
        ("points: [{}", "not valid YAML", "correct"),
        ("a: &x [1]\npoints: *x", "alias", "write the value out"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(tmp_path: Path, content: str, says: str, hint: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(content)
    with pytest.raises(BadInput) as failure:
        points_of(load_sweep(path), path, {"one": bundle()}, AskOptions())
    assert says in failure.value.message
    assert str(path) in failure.value.message
    assert hint in failure.value.remedy


def test_a_reduction_that_the_family_forbids_names_those_that_it_allows(tmp_path: Path) -> None:
    forbidding = next(name for name in ("qwen2_vl", "llava_next") if not discover.family(name).reducible)
    with pytest.raises(BadInput) as failure:
        points(tmp_path, {"tiling": ["none"], "reduce": ["none", "tome"]}, bundles={"one": bundle(forbidding)})
    assert "points.0" in failure.value.message
    assert "--reduce tome" in failure.value.message
    assert "--reduce none" in failure.value.remedy


def test_too_many_points_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="over 1000 points"):
        points(tmp_path, {"reduce": ["random"], "keep": [0.5], "seed": list(range(1001))})


def test_bundles_come_from_the_command_and_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("points: [{}]\n")
    assert list(open_bundles(load_sweep(path), path, None)) == ["nano"]
    path.write_text("points: [{}]\nbundles: {mine: nano}\n")
    assert list(open_bundles(load_sweep(path), path, None)) == ["mine"]
    assert list(open_bundles(load_sweep(path), path, "nano")) == ["nano", "mine"]
    path.write_text("points: [{}]\nbundles: {nano: nano}\n")
    with pytest.raises(BadInput, match=r"bundles\.nano has the name"):
        open_bundles(load_sweep(path), path, "nano")
    path.write_text("points: [{}]\nbundles: {mine: absent}\n")
    with pytest.raises(DamagedBundle, match="absent is not a folder"):
        open_bundles(load_sweep(path), path, None)

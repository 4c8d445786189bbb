"""A recipe made of a way of asking leads back to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vlm_edge import AskOptions
from vlm_edge.core import discover
from vlm_edge.core.bundle import Bundle
from vlm_edge.core.load import to_plain
from vlm_edge.core.recipe import Recipe, load_recipe
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.answering.options import Look
from vlm_edge.pipeline.answering.preflight import find_bundle
from vlm_edge.pipeline.answering.recipe_options import recipe_of, with_recipe, write_recipe
from vlm_edge.pipeline.planning import recipe_checks


@pytest.fixture(scope="module")
def nano() -> Bundle:
    return find_bundle(None)


def look(bundle: Bundle, options: AskOptions) -> Look:
    manifest = bundle.manifest
    return Look.of(options, manifest.defaults, manifest.limits.max_tiles, discover.family(manifest.model.family))


@pytest.mark.parametrize(
    "options",
    [
        AskOptions(),
        AskOptions(tiling="auto", max_tiles=3, reduce="tome", keep=0.25),
        AskOptions(tiling="auto", saliency="cnn", reduce="none"),
        AskOptions(tiling="grid", max_tiles=2, reduce="threshold", threshold=0.8),
        AskOptions(tiling="none", reduce="landmark", keep=0.75),
    ],
)
def test_a_recipe_leads_back_to_the_way_of_asking(nano: Bundle, options: AskOptions, tmp_path: Path) -> None:
    wanted = look(nano, options)
    path = tmp_path / "mine.yaml"
    write_recipe(recipe_of(nano, wanted, "mine"), path, ["one\nline", "another: line"])
    assert recipe_checks.check(str(path)).problem == ""
    assert path.read_text().startswith("# one line\n# another: line\nname: mine\n")
    again = with_recipe(AskOptions(), load_recipe(path), nano)
    assert look(nano, again) == wanted
    assert again.max_new_tokens == nano.manifest.defaults.max_new_tokens


def test_a_bundles_own_packing_is_kept(nano: Bundle) -> None:
    packed = {"llm": "int4", "vision": "int8", "group_size": 64, "lm_head": "int8", "kv_cache": "int4"}
    bundle = replace(nano, manifest=replace(nano.manifest, recipe={**nano.manifest.recipe, "packing": packed}))
    assert to_plain(recipe_of(bundle, look(nano, AskOptions()), "mine").packing) == packed


@pytest.fixture
def recipe(nano: Bundle) -> Recipe:
    return recipe_of(nano, look(nano, AskOptions(max_tiles=3, reduce="tome", keep=0.25, saliency="cnn")), "mine")


def test_what_the_caller_says_comes_first(nano: Bundle, recipe: Recipe) -> None:
    asked = with_recipe(
        AskOptions(reduce="threshold", threshold=0.9, max_tiles=1, max_new_tokens=5, seed=3), recipe, nano
    )
    assert (asked.reduce, asked.threshold, asked.max_tiles, asked.max_new_tokens) == ("threshold", 0.9, 1, 5)
    assert (asked.tiling, asked.saliency, asked.keep, asked.seed) == ("auto", "cnn", 0.25, 3)
    other = with_recipe(AskOptions(tiling="grid"), recipe, nano)
    assert (other.tiling, other.max_tiles, other.saliency) == ("grid", None, None)
    model = with_recipe(AskOptions(saliency_model="mine.onnx"), recipe, nano)
    assert (model.tiling, model.saliency, model.saliency_model) == ("auto", None, "mine.onnx")
    detail = with_recipe(
        AskOptions(saliency="detail"), replace(recipe, defaults=replace(recipe.defaults, tiling="none")), nano
    )
    assert (detail.tiling, detail.saliency, detail.max_tiles) == ("auto", "detail", None)


def test_a_recipe_for_something_else_is_refused(nano: Bundle, recipe: Recipe) -> None:
    with pytest.raises(BadInput, match="for the family internvl"):
        with_recipe(AskOptions(), replace(recipe, family="internvl"), nano)
    larger = replace(recipe, limits=replace(recipe.limits, max_tiles=9))
    with pytest.raises(BadInput, match="shows 9 tiles") as failure:
        with_recipe(AskOptions(), larger, nano)
    assert failure.value.remedy == "add --max-tiles 6"
    assert with_recipe(AskOptions(max_tiles=6), larger, nano).max_tiles == 6


def test_a_bundle_without_a_recipe_is_described_by_its_files(tiny_bundle: Bundle) -> None:
    bare = replace(tiny_bundle, manifest=replace(tiny_bundle.manifest, recipe={}))
    made = recipe_of(bare, look(bare, AskOptions(tiling="none", reduce="none")), "tiny")
    assert (made.packing.llm, made.packing.vision, made.view_tokens, made.join_rows) == ("int4", "fp16", (), False)
    assert made.limits.max_tiles == tiny_bundle.manifest.limits.max_tiles


def test_a_folder_that_cannot_be_written_is_told(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        write_recipe(recipe, tmp_path / "file" / "mine.yaml")

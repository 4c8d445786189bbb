"""Recipes: strict about every key, also those inside a published model's facts."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_edge.core.load import to_plain
from vlm_edge.core.recipe import Packing, Watched, load_recipe, recipe_names
from vlm_edge.core.resources import resource_dir
from vlm_edge.errors import BadInput


def test_what_nothing_reads_is_refused_with_the_nearest_key_that_was_asked_for() -> None:
    facts = Watched({"hidden_size": 4, "inner": {"patch_sise": 2}}, "model.config")
    assert facts.get("hidden_size") == 4
    assert facts.get("patch_size", 7) == 7
    inner = facts.get("inner")
    assert "patch_size" not in inner
    with pytest.raises(BadInput, match=r"model\.config\.inner\.patch_sise is not read") as caught:
        facts.refuse_unread()
    assert "'patch_size'" in caught.value.remedy


def test_all_that_was_read_passes() -> None:
    facts = Watched({"a": {"b": 1}}, "x")
    assert facts.get("a").get("b") == 1
    facts.refuse_unread()
    assert (len(facts), list(facts)) == (1, ["a"])


def test_a_key_that_was_never_asked_for_has_no_nearest() -> None:
    facts = Watched({"zzz": 1}, "x")
    with pytest.raises(BadInput) as caught:
        facts.refuse_unread()
    assert caught.value.remedy == "remove the key"


def test_older_recipes_stay_as_they_were_in_a_manifest() -> None:
    assert "group_size" not in to_plain(Packing())
    plain = to_plain(load_recipe(resource_dir("recipes") / "nano.yaml"))
    assert "model" not in plain
    assert plain["packing"] == {"llm": "int4", "vision": "fp32"}


def test_name_and_file_agree(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text((resource_dir("recipes") / "nano.yaml").read_text("utf-8"), "utf-8")
    with pytest.raises(BadInput, match="'nano'"):
        load_recipe(path)


def test_all_recipes_are_listed() -> None:
    assert {"nano", "llava-1.5-7b", "qwen2.5-vl-72b", "paligemma-3b-896"} <= set(recipe_names())

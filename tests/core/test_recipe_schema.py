"""The schema that editors get: it takes every shipped recipe, and refuses what the loader and the checks refuse.

It is read here by a validator of a few keywords that knows nothing of pydantic.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from vlm_edge.core.recipe import recipe_names
from vlm_edge.core.recipe_schema import recipe_schema
from vlm_edge.core.resources import resource_dir

TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict, "array": list}
READ = {
    "$ref", "$schema", "$defs", "additionalProperties", "anyOf", "default", "description", "enum", "items", "maximum",
    "minimum", "properties", "required", "title", "type",
}  # fmt: skip


def problems(value: Any, rule: Any, schema: dict[str, Any], where: str = "") -> list[str]:
    """Where a value breaks a rule of the schema."""
    if rule is True:
        return []
    assert set(rule) <= READ, f"{set(rule) - READ} is not read by this test"
    if "$ref" in rule:
        return problems(value, schema["$defs"][rule["$ref"].rpartition("/")[2]], schema, where)
    if "anyOf" in rule:
        tried = [problems(value, each, schema, where) for each in rule["anyOf"]]
        return [] if [] in tried else tried[0]
    if rule.get("type") == "null":
        return [] if value is None else [where]
    wrong_type = "type" in rule and not isinstance(value, TYPES[rule["type"]])
    if wrong_type or (isinstance(value, bool) and rule.get("type") != "boolean"):
        return [where]
    found = [where] if "enum" in rule and value not in rule["enum"] else []
    if isinstance(value, int | float) and not rule.get("minimum", value) <= value <= rule.get("maximum", value):
        found.append(where)
    if isinstance(value, list):
        found += [
            p for i, each in enumerate(value) for p in problems(each, rule.get("items", True), schema, f"{where}.{i}")
        ]
    if isinstance(value, dict):
        known = rule.get("properties", {})
        found += [f"{where}.{name}" for name in rule.get("required", ()) if name not in value]
        for name, each in value.items():
            inner = known.get(name, rule.get("additionalProperties", True))
            found += [f"{where}.{name}"] if inner is False else problems(each, inner, schema, f"{where}.{name}")
    return found


def shipped(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((resource_dir("recipes") / f"{name}.yaml").read_text("utf-8"))
    return found


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_keeps_to_it(name: str) -> None:
    schema = recipe_schema()
    assert problems(shipped(name), schema, schema) == []


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"famly": "llava"}, ".famly"),
        ({"limits": {"max_tiles": 1}}, ".limits.max_model_len"),
        ({"limits": {"max_tiles": -1, "max_model_len": 64}}, ".limits.max_tiles"),
        ({"limits": {"max_tiles": "4", "max_model_len": 64}}, ".limits.max_tiles"),
        ({"defaults": {"tiling": "gird"}}, ".defaults.tiling"),
        ({"defaults": {"keep": 1.5}}, ".defaults.keep"),
        ({"packing": {"llm": "int5"}}, ".packing.llm"),
        ({"packing": {"lm": "int4"}}, ".packing.lm"),
        ({"view_tokens": [1]}, ".view_tokens.0"),
        ({"join_rows": 1}, ".join_rows"),
        ({"model": {"id": "a/b"}}, ".model.source"),
    ],
)
def test_what_is_wrong_is_found_at_its_place(changes: dict[str, Any], where: str) -> None:
    schema = recipe_schema()
    assert where in problems(shipped("llava-1.5-7b") | changes, schema, schema)


def test_it_says_which_dialect_it_is() -> None:
    assert recipe_schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"

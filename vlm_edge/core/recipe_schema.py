"""The JSON schema of recipe files, for editors that check and complete YAML while it is written."""

from __future__ import annotations

from typing import Any

from vlm_edge.core.manifest_checks import RANGES, REDUCTIONS, TILINGS
from vlm_edge.core.recipe import KV_CACHES, LLM_WEIGHTS, LM_HEADS, VISION_WEIGHTS, Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_RECORDS = {"limits": "Limits", "defaults": "RunDefaults"}
_WORDS = {
    ("Packing", "llm"): LLM_WEIGHTS,
    ("Packing", "vision"): VISION_WEIGHTS,
    ("Packing", "lm_head"): LM_HEADS,
    ("Packing", "kv_cache"): KV_CACHES,
    ("RunDefaults", "tiling"): TILINGS,
    ("RunDefaults", "reduce"): REDUCTIONS,
}
"""Fields that are plain text to the dataclasses; what they may say is checked once a recipe is followed."""


def recipe_schema() -> dict[str, Any]:
    """What pydantic makes of `Recipe`, draft 2020-12, with the words and numbers that a field may hold."""
    from pydantic import TypeAdapter

    schema: dict[str, Any] = TypeAdapter(Recipe).json_schema()
    records = {name: record["properties"] for name, record in schema["$defs"].items()}
    for (record, field), words in _WORDS.items():
        records[record][field]["enum"] = list(words)
    for part, fields, least, most in RANGES:
        for field in fields if part in _RECORDS else ():
            records[_RECORDS[part]][field] |= {"minimum": least, "maximum": most}
    return {"$schema": DIALECT, **schema, "title": "vlm-edge recipe"}

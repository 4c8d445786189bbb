"""A recipe: one YAML that says how a model is packed for a budget and, for a published model, what it is made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from vlm_edge.core.bundle import Limits, RunDefaults
from vlm_edge.core.load import OMIT_DEFAULT, load_file
from vlm_edge.core.resources import shipped_file, shipped_names
from vlm_edge.errors import BadInput

_STRICT = {"extra": "forbid"}
LLM_WEIGHTS = ("int4", "int8", "fp16", "fp32")
VISION_WEIGHTS = ("fp32", "fp16", "int8")
LM_HEADS = ("fp16", "int8", "int4")
KV_CACHES = ("auto", "int8", "int4")


@dataclass(frozen=True)
class Packing:
    """llm: one of LLM_WEIGHTS.  vision: one of VISION_WEIGHTS.  group_size: weights that share a scale in the decoder's int4.

    lm_head: of an int4 decoder, one of LM_HEADS.  kv_cache: of an int4 decoder, one of KV_CACHES; `auto` is its float type.
    """

    llm: str = "int4"
    vision: str = "fp32"
    group_size: int = field(default=128, metadata=OMIT_DEFAULT)
    lm_head: str = field(default="fp16", metadata=OMIT_DEFAULT)
    kv_cache: str = field(default="auto", metadata=OMIT_DEFAULT)
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT


@dataclass(frozen=True)
class Published:
    """A published model as facts, so that it can be planned without its files.

    id: on the Hugging Face hub.  source: where config's values stand.  confirmed: what they were compared with, or that they
    were not.  parameters: as published, of the whole model; 0 where no figure was found.  parameters_source: of that figure.
    config, preprocessor: the fields of config.json and preprocessor_config.json that a plan reads, and no others.
    """

    id: str
    source: str
    confirmed: str
    config: dict[str, Any]
    preprocessor: dict[str, Any] = field(default_factory=dict)
    parameters: int = 0
    parameters_source: str = ""
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT


@dataclass(frozen=True)
class Recipe:
    """view_tokens: text tokens before the global view and before each tile, where the model was trained with them.

    join_rows: tiles that abut side by side are read row by row across them, where the model was trained that way.
    devices: profiles that the recipe is meant for, which it fits within its limits; for a recipe with a model.
    model: what a published model is made of; None where the recipe packs a checkpoint that is at hand.
    """

    name: str
    family: str
    limits: Limits
    defaults: RunDefaults = field(default_factory=RunDefaults)
    packing: Packing = field(default_factory=Packing)
    view_tokens: tuple[str, ...] = ()
    join_rows: bool = False
    devices: tuple[str, ...] = field(default=(), metadata=OMIT_DEFAULT)
    model: Published | None = field(default=None, metadata=OMIT_DEFAULT)
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT


def recipe_names() -> list[str]:
    """The recipes that ship with vlm-edge."""
    return shipped_names("recipes")


def find_recipe(name: str) -> Path:
    """A recipe's file: by path where `name` has a suffix, else the shipped one.  Raises BadInput with the nearest names."""
    return shipped_file("recipes", name, "recipe")


def load_recipe(path: Path) -> Recipe:
    """A recipe from a file, its name being the file's; raises BadInput."""
    recipe = load_file(path, Recipe)
    if recipe.name != path.stem:
        raise BadInput(f"{path} says that its name is {recipe.name!r}", remedy="let name and file agree")
    return recipe


class Watched(Mapping[str, Any]):
    """A mapping, and those inside it, that remember which keys were looked up: facts that nothing reads are misspelt."""

    def __init__(self, values: Mapping[str, Any], path: str) -> None:
        self._values = {
            key: Watched(value, f"{path}.{key}") if isinstance(value, Mapping) else value
            for key, value in values.items()
        }
        self._path = path
        self._asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str, default: Any = None) -> Any:
        """As a dict's; the key counts as read."""
        self._asked.add(key)
        return self._values.get(key, default)

    def __contains__(self, key: object) -> bool:
        self._asked.add(str(key))
        return key in self._values

    def refuse_unread(self) -> None:
        """Raise BadInput for the first key that was never looked up, with the nearest one that was."""
        for key, value in self._values.items():
            if key not in self._asked:
                near = difflib.get_close_matches(key, self._asked - {*self._values}, n=1)
                remedy = f"did you mean {near[0]!r}?" if near else "remove the key"
                raise BadInput(f"{self._path}.{key} is not read", remedy=remedy)
            if isinstance(value, Watched):
                value.refuse_unread()

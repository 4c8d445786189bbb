"""A recipe: one YAML that says how a model is packed for a budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from vlm_edge.core.bundle import Limits, RunDefaults

_STRICT = {"extra": "forbid"}


@dataclass(frozen=True)
class Packing:
    """llm: `int4` or `fp32`.  vision: `fp32`."""

    llm: str = "int4"
    vision: str = "fp32"
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT


@dataclass(frozen=True)
class Recipe:
    """view_tokens: text tokens before the global view and before each tile, where the model was trained with them.

    join_rows: tiles that abut side by side are read row by row across them, where the model was trained that way.
    """

    name: str
    family: str
    limits: Limits
    defaults: RunDefaults = field(default_factory=RunDefaults)
    packing: Packing = field(default_factory=Packing)
    view_tokens: tuple[str, ...] = ()
    join_rows: bool = False
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

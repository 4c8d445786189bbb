"""Families and backends are found by folder name; there is no table to edit."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from typing import Any, cast

from vlm_edge.core.contracts import Backend, VlmFamily
from vlm_edge.errors import BadInput


def names(package: str) -> list[str]:
    """Folder names under `vlm_edge.models` or `vlm_edge.backends`."""
    module = importlib.import_module(f"vlm_edge.{package}")
    return sorted(found.name for found in pkgutil.iter_modules(module.__path__) if found.ispkg)


def family(name: str) -> VlmFamily:
    """The family in vlm_edge/models/<name>; raises BadInput for a name without a folder."""
    _check("models", name, "model family")
    return cast(VlmFamily, importlib.import_module(f"vlm_edge.models.{name}").FAMILY)


def has_part(name: str, part: str) -> bool:
    """Whether the family's folder has a module of that name; nothing is imported."""
    return importlib.util.find_spec(f"vlm_edge.models.{name}.{part}") is not None


def family_part(name: str, part: str) -> Any:
    """A module of the family's folder, such as `images` or `prompt`; None where the folder lacks it."""
    return importlib.import_module(f"vlm_edge.models.{name}.{part}") if has_part(name, part) else None


def family_of(config: Mapping[str, Any]) -> VlmFamily:
    """The family that declares a config.json's `model_type`.

    Raises BadInput for a type that none declares: it names the nearest one and lists all.
    """
    by_type = {kind: found for found in map(family, names("models")) for kind in found.model_types}
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise BadInput(
            "config.json has no model_type", remedy=f"name a vision-language checkpoint: {', '.join(sorted(by_type))}"
        )
    if kind not in by_type:
        nearest = difflib.get_close_matches(kind, by_type, n=1, cutoff=0.0)[0]
        others = ", ".join(sorted(set(by_type) - {nearest}))
        raise BadInput(
            f"model type {kind[:60]!r} is not supported",
            remedy=f"the nearest supported one is {nearest!r}; the others are {others}",
        )
    return by_type[kind]


def backend(name: str) -> Backend:
    """The backend in vlm_edge/backends/<name>; raises BadInput for a name without a folder."""
    _check("backends", name, "backend")
    return cast(Backend, importlib.import_module(f"vlm_edge.backends.{name}").BACKEND)


def _check(package: str, name: str, what: str) -> None:
    known = names(package)
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
        raise BadInput(f"there is no {what} {name!r}", remedy=hint)

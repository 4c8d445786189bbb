"""YAML or JSON -> a frozen dataclass. An unknown key is an error that names the nearest known one."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args, get_type_hints

from vlm_edge.errors import BadInput, VlmEdgeError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")
MAX_FILE_BYTES = 64 << 20
_MAX_PLACE_CHARS = 200
OMIT_DEFAULT = MappingProxyType({"omit_default": True})
"""Metadata of a field that `to_plain` leaves out while it holds its default: it was added after files were written and
hashed without it."""


def load_file(path: Path, kind: type[T], *, error: type[VlmEdgeError] = BadInput) -> T:
    """Read a .json, .yaml or .yml file as `kind`; raises `error` with file and field named."""
    return parse(parse_text(read_text(path, error=error), str(path), error=error), kind, str(path), error=error)


def read_text(path: Path, *, error: type[VlmEdgeError] = BadInput) -> str:
    """A file of at most MAX_FILE_BYTES in UTF-8; raises `error`."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise error(f"{path} is larger than any such file should be", remedy="check that this is the right file")
        return path.read_text("utf-8")
    except (OSError, ValueError) as cause:
        raise error(f"{path} cannot be read: {cause}", remedy="check the path and the file's permissions") from cause


def parse_text(text: str, name: str, *, error: type[VlmEdgeError] = BadInput) -> Any:
    """JSON for names that end in .json, else YAML (safe subset, no aliases)."""
    try:
        return json.loads(text) if name.endswith(".json") else _parse_yaml(text, name, error)
    except (ValueError, RecursionError) as cause:
        raise error(f"{name} is not valid: {cause}", remedy="write the file again") from cause


def _parse_yaml(text: str, name: str, error: type[VlmEdgeError]) -> Any:
    import yaml

    # libyaml's is an order of magnitude faster; PyYAML may have been built without it
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        # an alias can stand for a value that has aliases itself: ten lines could make a million values
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, loader)):
            raise error(f"{name} has a YAML alias (*name)", remedy="write the value out where it is needed")
        return yaml.load(text, loader)
    except yaml.YAMLError as cause:
        raise error(f"{name} is not valid YAML: {cause}", remedy="correct the file at that place") from cause


def parse(data: Any, kind: type[T], name: str, *, error: type[VlmEdgeError] = BadInput) -> T:
    """Validate plain data as the dataclass `kind`; no coercion from text to numbers, no unknown keys."""
    from pydantic import ValidationError

    try:
        return cast("T", _adapter(cast("Any", kind)).validate_json(json.dumps(data), strict=True))
    except ValidationError as cause:
        first = cause.errors()[0]
        # no field is to blame where the whole is of the wrong kind, a number in place of an object for instance
        place = ".".join(map(str, first["loc"]))
        place = place if len(place) <= _MAX_PLACE_CHARS else place[:_MAX_PLACE_CHARS] + "..."  # a key may be anything
        where = ": ".join([name, place] if place else [name])
        known = field_names(kind)
        nearest = difflib.get_close_matches(str(first["loc"][-1]), known, n=1) if first["loc"] else []
        unknown = first["type"] in ("extra_forbidden", "unexpected_keyword_argument")
        hint = f"did you mean {nearest[0]!r}?" if nearest else "remove the key"
        remedy = hint if unknown else "correct the field" if first["loc"] else "correct it there"
        raise error(f"{where}: {first['msg'].lower()}", remedy=remedy) from cause
    except (TypeError, ValueError, RecursionError) as cause:
        raise error(f"{name} is not valid: {cause}", remedy="write the file again") from cause


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Built once for each kind: that takes longer than most files do."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def field_names(kind: Any) -> list[str]:
    """Names of all fields of a dataclass and of the dataclasses inside it."""
    names: list[str] = []
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            names.append(field.name)
            for inner in (hints[field.name], *get_args(hints[field.name])):
                names += field_names(inner)
    return names


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings -> what json.dumps takes; fields marked OMIT_DEFAULT only where they say something."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if _is_told(value, field)}
        return {name: to_plain(item) for name, item in held.items()}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def _is_told(value: Any, field: dataclasses.Field[Any]) -> bool:
    return not (field.metadata.get("omit_default") and getattr(value, field.name) == field.default)

"""config.json read field by field: every error names the field by its full path."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from vlm_edge.errors import BadInput

_LARGEST = 2**31 - 1
_MAX_LAYERS = 4096
_REMEDY = "correct the checkpoint's config.json, or download it again"


class Fields:
    """A mapping of config.json, with the values that its architecture takes for what it leaves out.

    path: where the mapping stands, such as "vision_config"; empty for the whole file.
    """

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any] | None = None, path: str = "") -> None:
        if not isinstance(values, Mapping):
            raise BadInput(f"config.json: {path or 'the file'} must be a JSON object", remedy=_REMEDY)
        self._values = values
        self._defaults = defaults or {}
        self._path = path

    def with_defaults(self, defaults: Mapping[str, Any]) -> Fields:
        """The same mapping with these defaults in place of its own."""
        return Fields(self._values, defaults, self._path)

    def part(self, name: str, *, optional: bool = False) -> Fields:
        """The mapping in a field; raises BadInput if it is missing, unless it is optional: then an empty one."""
        value = self._values.get(name)
        if value is None and not optional:
            raise self.error(name, "is missing")
        return Fields({} if value is None else value, path=f"{self._path}.{name}".lstrip("."))

    def error(self, name: str, why: str) -> BadInput:
        """A BadInput about one field."""
        return BadInput(f"config.json: {f'{self._path}.{name}'.lstrip('.')} {why}", remedy=_REMEDY)

    def has(self, name: str) -> bool:
        """Whether the file itself gives the field a value other than null."""
        return self._values.get(name) is not None

    def value(self, name: str) -> Any:
        """What the file says, or else the default; raises BadInput when there is neither."""
        if name in self._values:
            return self._values[name]
        if name in self._defaults:
            return self._defaults[name]
        raise self.error(name, "is missing")

    def integer(self, name: str, *, minimum: int = 1, maximum: int = _LARGEST) -> int:
        """A whole number within limits; raises BadInput."""
        value = self.value(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(name, f"must be a whole number, not {_shown(value)}")
        if not minimum <= value <= maximum:
            raise self.error(name, f"must lie between {minimum} and {maximum}, not {_shown(value)}")
        return value

    def count(self, name: str) -> int:
        """A number of layers: at most 4096."""
        return self.integer(name, maximum=_MAX_LAYERS)

    def optional(self, name: str) -> int | None:
        """A whole number of at least 1, or null."""
        return None if self.value(name) is None else self.integer(name)

    def side(self, name: str) -> int:
        """The side of a square in pixels: a number, or a list of two equal ones."""
        value = self.value(name)
        if not isinstance(value, list | tuple):
            return self.integer(name)
        if len(value) != 2 or value[0] != value[1]:
            raise self.error(name, f"must be square, not {_shown(value)}")
        return Fields({name: value[0]}, path=self._path).integer(name)

    def flag(self, name: str) -> bool:
        """True or false; raises BadInput for anything else."""
        value = self.value(name)
        if not isinstance(value, bool):
            raise self.error(name, f"must be true or false, not {_shown(value)}")
        return value

    def rule(self, rule: bool | str) -> bool:
        """A fixed answer, or that of the flag with this name."""
        return rule if isinstance(rule, bool) else self.flag(rule)

    def integers(self, name: str, *, minimum: int, maximum: int) -> tuple[int, ...]:
        """A list of whole numbers within limits; raises BadInput."""
        value = self.value(name)
        if not isinstance(value, list | tuple):
            raise self.error(name, f"must be a list of whole numbers, not {_shown(value)}")
        inside = [Fields({name: item}, path=self._path) for item in value]
        return tuple(item.integer(name, minimum=minimum, maximum=maximum) for item in inside)

    def choice(self, name: str, known: Collection[str], default: str | None = None) -> str:
        """One of the known words, such as a supported model_type; raises BadInput that names the nearest."""
        value = self._values.get(name) or default
        if value is None:
            raise self.error(name, "is missing")
        if isinstance(value, str) and value in known:
            return value
        nearest = difflib.get_close_matches(str(value), known, n=1)
        hint = f"the nearest supported one is {nearest[0]!r}; " if nearest else ""
        raise BadInput(
            self.error(name, f"{_shown(value)} is not supported").message,
            remedy=f"{hint}supported: {', '.join(sorted(known))}",
        )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

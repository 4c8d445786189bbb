"""A checkpoint's JSON files read field by field: every error names the file and the field by its full path."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from vlm_edge.errors import BadInput

MAX_COUNT = 1 << 16
"""Most pixels along an edge, patches or tokens."""
_LARGEST = 2**31 - 1
_MAX_LAYERS = 4096
_MAX_WHY_CHARS = 200
_MAX_NUMBER = 1e9


class Fields:
    """A JSON object, with the values that its architecture takes for what it leaves out; a wrong field is BadInput.

    path: where the object stands, such as "vision_config"; empty for the whole file.
    Those `defaults` stand for absent fields only: null is a value.  A method's own `default` also stands for null.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        defaults: Mapping[str, Any] | None = None,
        path: str = "",
        *,
        file: str = "config.json",
    ) -> None:
        self._values = values
        self._defaults = defaults or {}
        self._path = path
        self._file = file
        if not isinstance(values, Mapping):
            raise self._complaint(f"{path or 'the file'} must be a JSON object")

    def with_defaults(self, defaults: Mapping[str, Any]) -> Fields:
        """The same mapping with these defaults in place of its own."""
        return Fields(self._values, defaults, self._path, file=self._file)

    def with_value(self, name: str, value: Any) -> Fields:
        """The same mapping with one field set to something else."""
        return Fields({**self._values, name: value}, self._defaults, self._path, file=self._file)

    def part(self, name: str, *, optional: bool = False) -> Fields:
        """The mapping in a field; raises BadInput if it is missing, unless it is optional: then an empty one."""
        value = self._values.get(name)
        if value is None and not optional:
            raise self.error(name, "is missing")
        return Fields({} if value is None else value, path=self._full(name), file=self._file)

    def error(self, name: str, why: str) -> BadInput:
        """A BadInput about one field; what it quotes of the file may be long, and is cut."""
        short = why if len(why) <= _MAX_WHY_CHARS else why[:_MAX_WHY_CHARS] + "..."
        return self._complaint(f"{self._full(name)} {short}")

    def _complaint(self, message: str) -> BadInput:
        remedy = f"correct the checkpoint's {self._file}, or download it again"
        return BadInput(f"{self._file}: {message}", remedy=remedy)

    def _full(self, name: str) -> str:
        return f"{self._path}.{name}".lstrip(".")

    def has(self, name: str) -> bool:
        """Whether the file itself gives the field a value other than null."""
        return self._values.get(name) is not None

    def get(self, name: str, default: Any = None) -> Any:
        """What the file itself says, or `default` where that is nothing or null."""
        return self._values[name] if self.has(name) else default

    def value(self, name: str, default: Any = None) -> Any:
        """What the file says, or else a default (see the class); raises BadInput when there is neither."""
        if default is not None:
            return self.get(name, default)
        if name in self._values:
            return self._values[name]
        if name in self._defaults:
            return self._defaults[name]
        raise self.error(name, "is missing")

    def integer(self, name: str, default: int | None = None, *, minimum: int = 1, maximum: int = _LARGEST) -> int:
        """A whole number within limits; raises BadInput."""
        value = self.value(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(name, f"must be a whole number, not {_shown(value)}")
        if not minimum <= value <= maximum:
            raise self.error(name, f"must lie between {minimum} and {maximum}, not {_shown(value)}")
        return value

    def count(self, name: str, default: int | None = None, *, maximum: int = MAX_COUNT) -> int:
        """A number of pixels along an edge, of patches or tokens; at most MAX_COUNT unless `maximum` says otherwise."""
        return self.integer(name, default, maximum=maximum)

    def layers(self, name: str) -> int:
        """A number of layers: at most 4096."""
        return self.integer(name, maximum=_MAX_LAYERS)

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number of at most nine digits before the point; raises BadInput."""
        value = self.value(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < _MAX_NUMBER:
            raise self.error(name, f"must be a finite number, not {_shown(value)}")
        return float(value)

    def optional(self, name: str) -> int | None:
        """A whole number of at least 1, or null."""
        return None if self.value(name) is None else self.integer(name)

    def side(self, name: str, default: int | None = None) -> int:
        """The side of a square in pixels, at most MAX_COUNT: a number, or a list of two equal ones."""
        value = self.value(name, default)
        if not isinstance(value, list | tuple):
            return self.count(name, default)
        if len(value) != 2 or value[0] != value[1]:
            raise self.error(name, f"must be square, not {_shown(value)}")
        return self.with_value(name, value[0]).count(name)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false; raises BadInput for anything else."""
        value = self.value(name, default)
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
        return tuple(self.with_value(name, item).integer(name, minimum=minimum, maximum=maximum) for item in value)

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

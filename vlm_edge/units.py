"""Bytes are integers; this is the only place that turns text into bytes and bytes into text."""

from __future__ import annotations

import re
from decimal import Decimal

from vlm_edge.errors import BadInput

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_FACTORS = {
    "b": 1, "kib": KIB, "mib": MIB, "gib": GIB, "tib": 1 << 40,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
}  # fmt: skip
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def parse_bytes(text: str) -> int:
    """`24GiB`, `512 MiB`, `1.5gb` (decimal) or a plain number of bytes -> bytes.

    Raises BadInput for anything else, negative numbers included.
    """
    match = _PATTERN.fullmatch(text)
    factor = _FACTORS.get(match[2].lower() or "b") if match else None
    if match is None or factor is None:
        raise BadInput(f"{text!r} is not an amount of memory", remedy="write it like 24GiB, 512MiB or 8GB")
    return round(Decimal(match[1]) * factor)


def format_bytes(count: int) -> str:
    """Bytes -> `22.4 GiB`, `512 MiB`, `1.5 KiB` or `17 B`: binary units, with one decimal below 100."""
    for name, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        value = count / factor
        # What would round up to 1024 of a unit is 1.0 of the next.
        if abs(value) >= 1 - 0.5 / KIB:
            return f"{value:.0f} {name}" if abs(value) >= 99.95 else f"{value:.1f} {name}"
    return f"{count} B"


def format_pair(one: int, other: int) -> tuple[str, str]:
    """Two amounts that are compared: where `format_bytes` says the same of different ones, to a MiB, a KiB or a byte."""
    found = format_bytes(one), format_bytes(other)
    for name, factor in (("MiB", MIB), ("KiB", KIB), ("B", 1)):
        if one == other or found[0] != found[1]:
            break
        found = f"{one / factor:,.0f} {name}", f"{other / factor:,.0f} {name}"
    return found

"""A plan as data: items, the phases in which they are alive, and whether the largest phase fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

PHASES = ("load", "preprocess", "encode", "prefill", "decode")
Basis = Literal["exact", "bound", "measured"]
Place = Literal["device", "host"]


@dataclass(frozen=True)
class PlanItem:
    """One consumer of memory and the phases in which it is alive.

    place: `host` for what a GPU with memory of its own does not hold; such items count for the host alone.
    """

    name: str
    bytes: int
    phases: tuple[str, ...]
    formula: str
    basis: Basis
    dtype: str = ""
    place: Place = "device"


@dataclass(frozen=True)
class Plan:
    """The peak is the largest phase, never the sum of all items."""

    items: tuple[PlanItem, ...]
    phases: Mapping[str, int]
    budget_bytes: int
    visual_tokens: int
    host_phases: Mapping[str, int] | None = None

    @property
    def peak_phase(self) -> str:
        """The phase that needs the most."""
        return max(self.phases, key=lambda phase: self.phases[phase])

    @property
    def peak_bytes(self) -> int:
        """Bytes that phase needs."""
        return self.phases[self.peak_phase]

    @property
    def host_peak_bytes(self) -> int:
        """Bytes of the host's memory at their most; 0 where host and device are one."""
        return max((self.host_phases or {}).values(), default=0)

    @property
    def fits(self) -> bool:
        """Whether the peak is within the budget."""
        return self.peak_bytes <= self.budget_bytes


def sum_up(
    items: Sequence[PlanItem], *, budget_bytes: int, visual_tokens: int = 0, phases: Sequence[str] = PHASES
) -> Plan:
    """The plan of these items, phase by phase; items without a byte are left out."""
    held = tuple(item for item in items if item.bytes)

    def total(place: Place) -> dict[str, int]:
        return {phase: sum(i.bytes for i in held if i.place == place and phase in i.phases) for phase in phases}

    host = total("host")
    return Plan(held, total("device"), budget_bytes, visual_tokens, host if any(host.values()) else None)

"""What `verify` reports: single answers, and all of them together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_edge.backends.onnx.kv_cache import limit_name
from vlm_edge.backends.onnx.parity import LIMITS, Limit, limit_for
from vlm_edge.core.bundle import ArtifactRef, Bundle, ParityResult
from vlm_edge.core.load import to_plain


@dataclass(frozen=True)
class Check:
    """One answer.

    ok: yes, no, or None for what was not checked.  value, limit: what was found and what it had to be or to keep.
    note: why it was not checked, or more about a no.
    """

    name: str
    ok: bool | None
    value: float | int | str | None = None
    limit: float | int | str | None = None
    note: str = ""


@dataclass(frozen=True)
class Verification:
    """What `verify` found out about a bundle."""

    root: Path
    name: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """No check says no. What was not checked counts neither way; `checks` lists it."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that say no, in their order."""
        return tuple(check for check in self.checks if check.ok is False)

    def to_json(self) -> dict[str, Any]:
        """The report, as --json prints it and reports/verify.json holds it."""
        return {"ok": self.ok, "bundle": str(self.root), "name": self.name, "checks": to_plain(self.checks)}


@dataclass(frozen=True)
class Part:
    """A graph that is to be checked, and with what.  threads: of ONNX Runtime."""

    bundle: Bundle
    graph: ArtifactRef
    threads: int

    @property
    def name(self) -> str:
        """Its component and target, such as `vision/cpu`."""
        return f"{self.graph.role.partition('.')[0]}/{self.graph.target}"

    @property
    def path(self) -> Path:
        """Where the graph lies."""
        return self.bundle.root / self.graph.path


def limit_of(part: Part) -> Limit:
    """The dtype's, and the largest difference that the graph was exported with, if one was asked for."""
    rows = part.bundle.manifest.parity
    asked = [row.limit for row in rows if row.component == part.name and row.metric == "max_error"]
    cache = part.bundle.manifest.kv_cache(part.graph.target)
    name = limit_name(cache) if cache and part.graph.role == "llm.graph" else part.graph.dtype
    return limit_for(name, min(asked, default=None))


def stored_file(part: Part, role: str) -> Path | None:
    """The file of that role for the graph's target, if the bundle has one."""
    return part.bundle.find(role, target=part.graph.target)


def without_limit(part: Part) -> Check | None:
    """That parity is not checked, for a dtype to which the table has no limit; else None."""
    if part.graph.dtype in LIMITS:
        return None
    return not_checked(f"parity {part.name}", f"there is no limit for dtype {part.graph.dtype or 'unknown'}")


def not_checked(name: str, why: str) -> Check:
    """A check that was left out, which is never a yes."""
    return Check(name, None, note=why)


def of_parity(kind: str, row: ParityResult, note: str = "") -> Check:
    """A row of a parity result as a check; note: added where it says no."""
    return Check(f"{kind} {row.component} {row.metric}", row.ok, row.value, row.limit, "" if row.ok else note)

"""What `build` remembers in its bundle, reports/build.json: which steps are finished, of what inputs, and what they took."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from vlm_edge.core.bundle import ArtifactRef, Bundle, hash_file
from vlm_edge.core.load import load_file, to_plain
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.written import written

RECORD = "reports/build.json"
_STRICT = {"extra": "forbid"}


@dataclass(frozen=True)
class Stamp:
    """A file of the bundle as a step left it."""

    path: str
    sha256: str
    bytes: int
    mtime_ns: int
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT


@dataclass(frozen=True)
class StepRecord:
    """A finished step.

    inputs: SHA-256 of all that its result depends on.  planned_peak_bytes: None for what was not planned.  measured_peak_bytes:
    resident at most, kept_peak_bytes without pages of mapped files.  details: what else the step tells of its result.
    """

    inputs: str
    outputs: tuple[Stamp, ...]
    planned_peak_bytes: int | None
    measured_peak_bytes: int
    kept_peak_bytes: int
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT


@dataclass(frozen=True)
class BuildRecord:
    """source: hashes that say which model is built.  recipe: its name.  steps: by name."""

    source: dict[str, str]
    recipe: str
    steps: dict[str, StepRecord] = field(default_factory=dict)
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    def with_step(self, name: str, step: StepRecord) -> BuildRecord:
        """The same with one more finished step, or with a newer one of that name."""
        return replace(self, steps={**self.steps, name: step})


def read_record(out: Path, source: Mapping[str, str]) -> BuildRecord | None:
    """What an earlier run wrote about this model, or None: a record that cannot be read only costs the steps again."""
    try:
        found = load_file(out / RECORD, BuildRecord)
    except BadInput:
        return None
    return found if found.source == dict(source) else None


def write_record(out: Path, record: BuildRecord) -> None:
    """Replace the record; raises BadInput where it cannot be written."""
    content: Any = to_plain(record)
    with written(out / RECORD, remedy="free space there") as stream:
        stream.write(json.dumps(content, indent=1).encode() + b"\n")


def fingerprint(*parts: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def stamps(bundle: Bundle, artifacts: Sequence[ArtifactRef]) -> tuple[Stamp, ...]:
    """Of files that were written just now."""
    return tuple(
        Stamp(a.path, a.sha256, a.bytes, (bundle.root / a.path).stat().st_mtime_ns)
        for a in sorted(artifacts, key=lambda artifact: artifact.path)
    )


def still_there(step: StepRecord, bundle: Bundle) -> bool:
    """Whether a bundle holds all that a step wrote, unchanged; what was touched meanwhile is hashed."""
    held = {artifact.path: artifact for artifact in bundle.manifest.artifacts}
    return bool(step.outputs) and all(
        stamp.path in held and held[stamp.path].sha256 == stamp.sha256 and _is_whole(bundle.root, stamp)
        for stamp in step.outputs
    )


def _is_whole(root: Path, stamp: Stamp) -> bool:
    path = root / stamp.path
    try:
        status = path.stat()
        if (status.st_size, status.st_mtime_ns) == (stamp.bytes, stamp.mtime_ns):
            return True
        return status.st_size == stamp.bytes and hash_file(path) == stamp.sha256
    except OSError:
        return False


def touched(bundle: Bundle) -> list[list[Any]]:
    """Every file's path, size and time, so that a step that reads them all sees whether one changed."""
    rows = []
    for artifact in bundle.manifest.artifacts:
        status = (bundle.root / artifact.path).stat()
        rows.append([artifact.path, status.st_size, status.st_mtime_ns])
    return rows

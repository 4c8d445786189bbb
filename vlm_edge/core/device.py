"""Device profiles: what a device has, with the source of every figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from vlm_edge.core.load import load_file
from vlm_edge.core.resources import shipped_file, shipped_names
from vlm_edge.errors import BadInput

_STRICT = {"extra": "forbid"}


@dataclass(frozen=True)
class Figure:
    """A whole number and where it comes from."""

    value: int
    source: str
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT


@dataclass(frozen=True)
class Share:
    """The part of a peak that is reached in practice, and where that comes from."""

    value: float
    source: str
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT


@dataclass(frozen=True)
class DeviceProfile:
    """One device.

    total_bytes: what the data sheet promises.  usable_bytes: what is left for a process on a device that does nothing
    else, its own context not deducted.  unified_memory: CPU and GPU share it.  bandwidth: bytes a second.  flops: operations
    a second by dtype, dense, with fp32 sums.  runtime_bytes: context and libraries, where measured on this device.
    bandwidth_share, compute_share: what decode reaches of the bandwidth, and prefill of the arithmetic.  encode_share: what
    the vision tower reaches of it; None: as much as prefill.
    """

    name: str
    title: str
    target: Literal["cpu", "cuda"]
    unified_memory: bool
    total_bytes: Figure
    usable_bytes: Figure
    bandwidth: Figure
    flops: Mapping[str, Figure]
    bandwidth_share: Share
    compute_share: Share
    compute_capability: str = ""
    encode_share: Share | None = None
    runtime_bytes: Figure | None = None
    notes: tuple[str, ...] = field(default=())
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT


def profile_names() -> list[str]:
    """The profiles that ship with vlm-edge."""
    return shipped_names("profiles")


def find_profile(name: str) -> Path:
    """A profile's file: by path where `name` has a suffix, else the shipped one; raises BadInput with the nearest names."""
    return shipped_file("profiles", name, "device profile")


def load_profile(name: str) -> DeviceProfile:
    """A shipped profile by name, or one in a file of one's own; raises BadInput with the nearest names."""
    path = find_profile(name)
    profile = _checked(load_file(path, DeviceProfile), str(path))
    if path.stem == name and profile.name != name:
        raise BadInput(f"{path} says that its name is {profile.name!r}", remedy="let name and file agree")
    return profile


def _checked(profile: DeviceProfile, where: str) -> DeviceProfile:
    figures = {
        "total_bytes": profile.total_bytes, "usable_bytes": profile.usable_bytes, "bandwidth": profile.bandwidth,
        **{f"flops.{dtype}": figure for dtype, figure in profile.flops.items()},
    }  # fmt: skip
    if profile.runtime_bytes is not None:
        figures["runtime_bytes"] = profile.runtime_bytes
    shares = {"bandwidth_share": profile.bandwidth_share, "compute_share": profile.compute_share}
    if profile.encode_share is not None:
        shares["encode_share"] = profile.encode_share
    for key, figure in figures.items():
        _refuse_unless(figure.value > 0, where, key, "is not positive")
    for key, share in shares.items():
        _refuse_unless(0 < share.value <= 1, where, key, "is not above 0 and at most 1")
    for key, told in (figures | shares).items():
        _refuse_unless(bool(told.source.strip()), where, key, "has no source")
    _refuse_unless(
        profile.usable_bytes.value <= profile.total_bytes.value, where, "usable_bytes", "exceeds total_bytes"
    )
    _refuse_unless(bool({"fp16", "fp32"} & {*profile.flops}), where, "flops", "has neither fp16 nor fp32")
    return profile


def _refuse_unless(right: bool, where: str, key: str, why: str) -> None:
    if not right:
        raise BadInput(f"{where}: {key} {why}", remedy="correct the profile")

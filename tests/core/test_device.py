"""Device profiles: the shipped ones are whole and sourced, and wrong ones are refused by field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlm_edge.core.device import DeviceProfile, load_profile, profile_names
from vlm_edge.core.resources import resource_dir
from vlm_edge.errors import BadInput
from vlm_edge.units import GIB

NEEDED = {
    "rtx-4090", "rtx-3090", "rtx-4080", "rtx-4070", "rtx-4060", "rtx-3060", "l4", "a10", "t4", "h200", "cpu-generic",
    "jetson-agx-orin-64gb", "jetson-agx-orin-32gb", "jetson-orin-nx-16gb", "jetson-orin-nx-8gb", "jetson-orin-nano-8gb",
    "jetson-agx-thor",
}  # fmt: skip


def test_the_devices_that_were_promised_are_there() -> None:
    assert set(profile_names()) >= NEEDED


@pytest.mark.parametrize("name", profile_names())
def test_a_shipped_profile_is_plausible(name: str) -> None:
    profile = load_profile(name)
    assert 4 * GIB < profile.usable_bytes.value <= profile.total_bytes.value < 200 * GIB
    assert profile.usable_bytes.value > 0.6 * profile.total_bytes.value
    assert 30e9 < profile.bandwidth.value < 10e12
    assert all(len(figure.source) > 10 for figure in (profile.total_bytes, profile.bandwidth, *profile.flops.values()))
    if profile.target == "cuda":
        assert profile.compute_capability
        assert profile.flops["fp32"].value < profile.flops["fp16"].value < profile.flops["int8"].value
    assert profile.unified_memory == (name.startswith("jetson") or profile.target == "cpu")


SOURCED = ("http", "computed", "measured", "assumed", "not verified", "512 MiB")
"""What a source names: a page, what a figure was made of, who measured it; or it says that there is none."""


def figures(profile: DeviceProfile) -> Iterator[tuple[str, str]]:
    for name in (
        "total_bytes",
        "usable_bytes",
        "bandwidth",
        "bandwidth_share",
        "compute_share",
        "encode_share",
        "runtime_bytes",
    ):
        figure = getattr(profile, name)
        if figure is not None:
            yield name, figure.source
    yield from ((f"flops.{dtype}", figure.source) for dtype, figure in profile.flops.items())


@pytest.mark.parametrize("name", profile_names())
def test_every_figure_says_where_it_is_from(name: str) -> None:
    unsourced = [key for key, source in figures(load_profile(name)) if not any(word in source for word in SOURCED)]
    assert unsourced == []


SMS_AND_CLOCK = {
    "rtx-4090": (128, 2520), "rtx-4080": (76, 2505), "rtx-4070": (46, 2475), "rtx-4060": (24, 2460),
    "rtx-3090": (82, 1695), "rtx-3060": (28, 1777), "a10": (72, 1695),
}  # fmt: skip
"""Streaming multiprocessors and boost clock in MHz."""
OPERATIONS = {"fp32": 256, "fp16": 512, "int8": 2048}
"""Dense operations a clock of one multiprocessor of Ampere (8.6) and Ada, fp16 with fp32 sums as GeForce cards have it."""


@pytest.mark.parametrize("name", SMS_AND_CLOCK)
def test_rates_are_those_of_the_chip(name: str) -> None:
    """Wrong by two is the usual mistake: sparse rates, or fp16 sums."""
    sms, clock_mhz = SMS_AND_CLOCK[name]
    for dtype, figure in load_profile(name).flops.items():
        halved = 2 if dtype == "fp16" and not name.startswith("rtx") else 1
        assert figure.value == pytest.approx(sms * clock_mhz * 1e6 * OPERATIONS[dtype] * halved, rel=0.01), dtype


def plain(name: str = "rtx-4090") -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((resource_dir("profiles") / f"{name}.yaml").read_text("utf-8"))
    return found


def written(tmp_path: Path, values: dict[str, Any]) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values), "utf-8")
    return str(path)


def test_a_profile_in_a_file_of_ones_own(tmp_path: Path) -> None:
    mine = plain() | {"name": "mine", "usable_bytes": {"value": 10 * GIB, "source": "measured"}}
    assert load_profile(written(tmp_path, mine)).usable_bytes.value == 10 * GIB


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"usable_bytes": {"value": 1 << 50, "source": "x"}}, "usable_bytes exceeds"),
        ({"bandwidth": {"value": 0, "source": "x"}}, "bandwidth is not positive"),
        ({"bandwidth": {"value": -5, "source": "x"}}, "bandwidth is not positive"),
        ({"bandwidth": {"value": 5, "source": " "}}, "bandwidth has no source"),
        ({"bandwidth": {"value": 5}}, "bandwidth.source"),
        ({"bandwidth": {"value": "fast", "source": "x"}}, "bandwidth.value"),
        ({"bandwidth": 5}, "bandwidth"),
        ({"bandwith": {"value": 5, "source": "x"}}, "bandwith"),
        ({"flops": {}}, "flops has neither"),
        ({"flops": {"fp16": {"value": 0, "source": "x"}}}, "flops.fp16"),
        ({"compute_share": {"value": 1.2, "source": "x"}}, "compute_share is not"),
        ({"encode_share": {"value": 0.0, "source": "x"}}, "encode_share is not"),
        ({"target": "rocm"}, "target"),
        ({"unified_memory": "no"}, "unified_memory"),
    ],
)
def test_wrong_figures_are_named(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=named):
        load_profile(written(tmp_path, plain() | changes))


def test_a_misspelt_key_brings_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        load_profile(written(tmp_path, plain() | {"bandwith": {"value": 5, "source": "x"}}))
    assert "'bandwidth'" in caught.value.remedy


@pytest.mark.parametrize(("asked", "meant"), [("rtx4090", "rtx-4090"), ("RTX-3090", "rtx-3090"), ("orin-nano", "nano")])
def test_unknown_names_bring_the_nearest(asked: str, meant: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_profile(asked)
    assert meant in caught.value.remedy


def test_a_missing_file_is_told() -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        load_profile("nowhere.yaml")

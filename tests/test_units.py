"""Bytes to text and back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_edge.errors import BadInput
from vlm_edge.units import format_bytes, format_pair, parse_bytes

SCALES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("24GiB", 25_769_803_776),
        ("24 gib", 25_769_803_776),
        ("24GB", 24_000_000_000),
        ("512 MiB", 536_870_912),
        ("1.5gb", 1_500_000_000),
        ("0.5KiB", 512),
        ("1TiB", 1_099_511_627_776),
        ("2tb", 2_000_000_000_000),
        ("17", 17),
        ("17 B", 17),
        ("  0  ", 0),
        ("9007199254740993", 9_007_199_254_740_993),  # 2**53 + 1, which no double holds
        ("1" + "0" * 400, 10**400),  # over the largest double
    ],
)
def test_amounts_of_memory_are_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text",
    ["", " ", "GiB", "-1GiB", "1e9", "0x10", "1,5GiB", "1.GiB", ".5GiB", "24G", "24Gi", "1 2", "nan", "inf", "1GiBs"],
)
def test_other_text_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadInput, match="not an amount") as caught:
        parse_bytes(text)
    assert "24GiB" in caught.value.remedy


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (102_350, "100 KiB"),
        (1_048_575, "1.0 MiB"),
        (1_047_552, "1023 KiB"),
        (536_870_912, "512 MiB"),
        (1_073_741_823, "1.0 GiB"),
        (25_769_803_776, "24.0 GiB"),
        (107_266_808_218, "99.9 GiB"),
        (107_374_182_399, "100 GiB"),
        (-1536, "-1.5 KiB"),
        (2**50, "1048576 GiB"),
    ],
)
def test_bytes_are_written_in_the_largest_fitting_unit(count: int, text: str) -> None:
    assert format_bytes(count) == text


@given(st.integers(0, 2**40))
def test_written_bytes_are_within_rounding_of_the_count_and_can_be_read_again(count: int) -> None:
    text = format_bytes(count)
    match = re.fullmatch(r"(\d+(?:\.\d)?) (B|KiB|MiB|GiB)", text)
    assert match
    scale = SCALES[match[2]]
    last_place = scale if "." not in match[1] else scale / 10
    assert abs(float(match[1]) * scale - count) <= last_place / 2 * (scale > 1) + 1e-6 * scale
    assert abs(parse_bytes(text) - count) <= last_place
    assert float(match[1]) < 1024 or match[2] == "GiB"


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (2**30, 2**29, ("1.0 GiB", "512 MiB")),
        (2**30 + 2**22, 2**30, ("1,028 MiB", "1,024 MiB")),
        (2**30 + 2**12, 2**30, ("1,048,580 KiB", "1,048,576 KiB")),
        (2**30 + 1, 2**30, ("1,073,741,825 B", "1,073,741,824 B")),
        (2**30, 2**30, ("1.0 GiB", "1.0 GiB")),
    ],
)
def test_amounts_that_differ_are_told_apart(one: int, other: int, told: tuple[str, str]) -> None:
    assert format_pair(one, other) == told
    assert format_pair(other, one) == told[::-1]

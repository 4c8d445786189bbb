"""Strict loading: every field has its type, every unknown key is an error that helps, and hostile files end early."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from vlm_edge.core import load
from vlm_edge.core.load import field_names, load_file, parse, parse_text, to_plain
from vlm_edge.errors import BadInput, DamagedBundle


@dataclass(frozen=True)
class Inner:
    size: int
    share: float = 0.5
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    items: tuple[Inner, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    on: bool = False
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


GOOD = {"name": "a", "inner": {"size": 3}, "items": [{"size": 1, "share": 1}], "tags": {"k": "v"}, "on": True}
LOADED = Outer("a", Inner(3), (Inner(1, 1.0),), {"k": "v"}, True)


def refusal(data: object) -> BadInput:
    with pytest.raises(BadInput) as caught:
        parse(data, Outer, "file.json")
    assert caught.value.message.startswith("file.json")
    return caught.value


def test_plain_data_becomes_the_dataclass_and_back() -> None:
    assert parse(GOOD, Outer, "x") == LOADED
    assert parse(to_plain(LOADED), Outer, "x") == LOADED
    assert to_plain(LOADED)["items"] == [{"size": 1, "share": 1.0}]


@pytest.mark.parametrize("name", ["r.json", "r.yaml", "r.yml"])
def test_json_and_yaml_files(tmp_path: Path, name: str) -> None:
    text = '{"name": "a", "inner": {"size": 3}}' if name == "r.json" else "name: a\ninner:\n  size: 3\n"
    (tmp_path / name).write_text(text)
    assert load_file(tmp_path / name, Outer) == Outer("a", Inner(3))


@pytest.mark.parametrize(
    ("change", "where", "remedy"),
    [
        ({"nmae": "a"}, "nmae", "did you mean 'name'?"),
        ({"inner": {"size": 3, "shar": 1}}, "inner.shar", "did you mean 'share'?"),
        ({"items": [{"size": 1}, {"sise": 1}]}, "items.1", "correct the field"),
        ({"items": [{"size": 1, "sises": 1}]}, "items.0.sises", "did you mean 'size'?"),
        ({"qqqqqq": 1}, "qqqqqq", "remove the key"),
        ({"name": 1}, "name", "correct the field"),
        ({"inner": {"size": "3"}}, "inner.size", "correct the field"),
        ({"inner": {"size": 3.0}}, "inner.size", "correct the field"),
        ({"inner": {"size": True}}, "inner.size", "correct the field"),
        ({"inner": {"size": 1, "share": "0.5"}}, "inner.share", "correct the field"),
        ({"on": 1}, "on", "correct the field"),
        ({"on": "yes"}, "on", "correct the field"),
        ({"tags": {"k": 1}}, "tags.k", "correct the field"),
        ({"inner": None}, "inner", "correct the field"),
        ({"items": {"size": 1}}, "items", "correct the field"),
    ],
)
def test_a_field_that_is_wrong_is_named(change: dict[str, object], where: str, remedy: str) -> None:
    error = refusal(GOOD | change)
    assert where in error.message
    assert error.remedy == remedy


@pytest.mark.parametrize("data", [None, [], "text", 3, [GOOD], {}])
def test_what_is_no_mapping_with_the_fields_is_refused(data: object) -> None:
    refusal(data)


def test_the_caller_chooses_the_error() -> None:
    with pytest.raises(DamagedBundle):
        parse({}, Outer, "x", error=DamagedBundle)


def test_names_of_inner_fields_are_known() -> None:
    assert set(field_names(Outer)) == {"name", "inner", "items", "tags", "on", "size", "share"}


@pytest.mark.parametrize("name", ["missing.json", "folder", "nul\0.json", "x" * 300])
def test_a_file_that_cannot_be_read_is_an_error_with_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadInput, match="cannot be read"):
        load_file(tmp_path / name, Outer)


def test_a_file_that_is_no_text_or_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"name: \xff")
    with pytest.raises(BadInput, match="cannot be read"):
        load_file(path, Outer)
    monkeypatch.setattr(load, "MAX_FILE_BYTES", 3)
    with pytest.raises(BadInput, match="larger"):
        load_file(path, Outer)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "{"),
        ("a.json", "[" * 100_000),
        ("a.json", "\ufeff{}"),
        ("a.json", "9" * 5000),
        ("a.yaml", "a: [1, 2"),
        ("a.yaml", "a: b: c"),
        ("a.yaml", "\tx: 1"),
        ("a.yaml", "a: \x07"),
        ("a.yaml", "!!python/object/apply:os.system [true]"),
        ("a.yaml", "a: !unknown 1"),
        ("a.yaml", "[" * 1500),
        ("a.yaml", "a: 1\n---\nb: 2\n"),
        ("a.yaml", "2024-99-99: 1"),
    ],
)
def test_text_that_does_not_parse_is_refused(name: str, text: str) -> None:
    with pytest.raises(BadInput, match=r"a\.(json|yaml) is not valid"):
        parse_text(text, name)


def test_yaml_that_multiplies_itself_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    started = time.perf_counter()
    with pytest.raises(BadInput, match="alias"):
        parse_text("\n".join(lines), "a.yaml")
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("text", ["name: 2024-01-01\ninner: {size: 3}", "name: !!binary aGk=\ninner: {size: 3}"])
def test_yaml_values_that_json_has_not_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"r\.yaml"):
        parse(parse_text(text, "r.yaml"), Outer, "r.yaml")


def test_very_deep_data_is_refused() -> None:
    deep: object = 0
    for _ in range(50_000):
        deep = [deep]
    refusal(GOOD | {"tags": deep})


def test_a_key_of_any_length_makes_a_short_message() -> None:
    with pytest.raises(BadInput) as caught:
        parse({"size": 1, "x" * 100_000: 1}, Inner, "here")
    assert len(caught.value.message) < 400

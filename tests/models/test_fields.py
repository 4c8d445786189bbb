"""Fields of a JSON file: types, ranges, defaults, and complaints that name file and field."""

from __future__ import annotations

import pytest

from vlm_edge.errors import BadInput
from vlm_edge.models.fields import Fields


@pytest.mark.parametrize("data", [None, [], "config", 3])
def test_a_file_that_holds_no_object(data: object):
    with pytest.raises(BadInput, match="must be a JSON object"):
        Fields(data)  # type: ignore[arg-type]


def test_long_values_are_cut_in_messages():
    with pytest.raises(BadInput) as caught:
        Fields({"hidden_size": "9" * 10_000}).integer("hidden_size")
    assert len(caught.value.message) < 200


def test_whatever_else_is_said_of_a_field_is_cut_too():
    assert len(Fields({}).error("size", f"is no size: {'x' * 100_000!r}").message) < 300


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_the_error_names_file_and_field(file: str):
    with pytest.raises(BadInput) as caught:
        Fields({"vision_config": {}}, file=file).part("vision_config").with_defaults({"depth": 1}).count("patch_size")
    assert caught.value.message == f"{file}: vision_config.patch_size is missing"
    assert f"checkpoint's {file}," in caught.value.remedy


@pytest.mark.parametrize("value", [True, False, 1.0, "1", [], {}, -1, 0, 1 << 40])
def test_counts_are_whole_and_in_range(value: object):
    with pytest.raises(BadInput, match="side"):
        Fields({"side": value}).count("side")


@pytest.mark.parametrize("value", [True, "1", [1], float("nan"), float("inf"), 10**400])
def test_numbers_are_finite(value: object):
    with pytest.raises(BadInput, match="scale must be a finite number"):
        Fields({"scale": value}).number("scale")


def test_null_is_a_value_to_an_architectures_defaults_and_absent_to_a_default_of_the_call():
    fields = Fields({"heads": None}, {"heads": 8, "layers": 2})
    assert (fields.optional("heads"), fields.layers("layers")) == (None, 2)
    with pytest.raises(BadInput, match="heads must be a whole number, not None"):
        fields.integer("heads")
    assert (fields.integer("heads", 4), fields.integer("layers", 4), fields.side("heads", 5)) == (4, 4, 5)
    assert fields.flag("heads", False) is False

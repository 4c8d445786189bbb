"""Families and backends by name, and the family of a config.json."""

from __future__ import annotations

import pytest

from vlm_edge.core import discover
from vlm_edge.errors import BadInput

FAMILY_OF_TYPE = {
    "llava": "llava",
    "llava_next": "llava_next",
    "internvl": "internvl",
    "idefics2": "idefics2",
    "idefics3": "idefics3",
    "smolvlm": "idefics3",
    "paligemma": "paligemma",
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_5_vl",
    "mllama": "mllama",
}


@pytest.mark.parametrize(("model_type", "family"), FAMILY_OF_TYPE.items())
def test_the_family_of_a_model_type(model_type: str, family: str) -> None:
    assert discover.family_of({"model_type": model_type}).name == family


def test_every_family_is_named_after_its_folder_and_claims_types_of_its_own() -> None:
    families = [discover.family(name) for name in discover.names("models")]
    assert [family.name for family in families] == discover.names("models")
    claimed = [kind for family in families for kind in family.model_types]
    assert sorted(claimed) == sorted(FAMILY_OF_TYPE)


def test_only_the_family_for_the_planner_allows_no_reduction() -> None:
    families = map(discover.family, discover.names("models"))
    assert [family.name for family in families if not family.merge_sites] == ["mllama"]
    assert discover.family("mllama").prompt is None


@pytest.mark.parametrize(
    ("model_type", "nearest"),
    [("llava_onevision", "llava"), ("qwen2_6_vl", "qwen2_5_vl"), ("idefics", "idefics"), ("zzz", ""), ("", "")],
)
def test_an_unknown_type_brings_the_nearest_and_all_others(model_type: str, nearest: str) -> None:
    with pytest.raises(BadInput) as caught:
        discover.family_of({"model_type": model_type})
    assert repr(model_type) in caught.value.message
    first, _, rest = caught.value.remedy.partition(";")
    assert nearest in first
    named = {kind for kind in FAMILY_OF_TYPE if repr(kind) in first}
    assert len(named) == 1
    assert set(rest.rpartition(" are ")[2].split(", ")) == FAMILY_OF_TYPE.keys() - named


@pytest.mark.parametrize("config", [{}, {"model_type": None}, {"model_type": ["llava"]}, {"model_type": 3}])
def test_a_config_without_a_type(config: dict[str, object]) -> None:
    with pytest.raises(BadInput, match="has no model_type") as caught:
        discover.family_of(config)
    assert "paligemma" in caught.value.remedy


@pytest.mark.parametrize(("find", "name"), [(discover.family, "lava"), (discover.backend, "onnxx")])
def test_a_name_without_a_folder(find: object, name: str) -> None:
    with pytest.raises(BadInput) as caught:
        find(name)  # type: ignore[operator]
    assert caught.value.remedy == f"did you mean {'llava' if name == 'lava' else 'onnx'!r}?"

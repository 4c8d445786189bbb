"""What the planner is told about a model: from config.json, what lies beside it, and the headers of its weights."""

from __future__ import annotations

from typing import Any

import pytest

from tests.models.census import TEXT, changed
from vlm_edge.core.geometry import AnyResGeometry, SplitGeometry
from vlm_edge.core.recipe import load_recipe, recipe_names
from vlm_edge.core.resources import resource_dir
from vlm_edge.errors import BadInput
from vlm_edge.models.subjects import subject_from

QWEN_7B: dict[str, Any] = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768,
    "use_sliding_window": False, "tie_word_embeddings": False,
}  # fmt: skip
PUBLISHED = [name for name in recipe_names() if name != "nano"]


def test_a_text_model_has_no_tower() -> None:
    subject = subject_from("qwen", QWEN_7B)
    assert (subject.vision, subject.projector, subject.geometry) == (None, None, None)
    assert subject.text.parameters == 7_615_616_512  # Qwen2.5-7B, as published


@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("mistral", False), ("gemma", True), ("gemma2", True)])
def test_a_silent_text_config_ties_as_its_architecture_does(kind: str, tied: bool) -> None:
    assert subject_from("t", TEXT | {"model_type": kind}).text.tied_embeddings is tied


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_lone_config_is_cut_as_the_published_model(name: str) -> None:
    """What is taken for granted without preprocessor_config.json agrees with what the published files say."""
    recipe = load_recipe(resource_dir("recipes") / f"{name}.yaml")
    assert recipe.model is not None
    alone = subject_from(name, recipe.model.config, family=recipe.family)
    beside = subject_from(name, recipe.model.config, recipe.model.preprocessor, family=recipe.family)
    assert alone.geometry is not None
    assert beside.geometry is not None
    for size in ((336, 336), (1344, 896), (640, 480), (1920, 1080), (300, 2000)):
        assert alone.geometry.layout(size) == beside.geometry.layout(size)


def test_geometry_is_the_familys_own() -> None:
    def geometry(name: str) -> object:
        recipe = load_recipe(resource_dir("recipes") / f"{name}.yaml")
        assert recipe.model is not None
        return subject_from(name, recipe.model.config, family=recipe.family).geometry

    assert isinstance(geometry("llava-next-mistral-7b"), AnyResGeometry)
    assert isinstance(geometry("smolvlm-256m"), SplitGeometry)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({}, "model_type"),
        ({"model_type": 7}, "model_type"),
        ({"model_type": "bert"}, "'bert'"),
        (changed(QWEN_7B, "hidden_size", "3584"), "hidden_size"),
        (changed(QWEN_7B, "num_hidden_layers", -2), "num_hidden_layers"),
        (changed(QWEN_7B, "num_key_value_heads", 5), "num_key_value_heads"),
        (changed(QWEN_7B, "vocab_size", 10**12), "vocab_size"),
        (changed(QWEN_7B, "tie_word_embeddings", "no"), "tie_word_embeddings"),
        ({"model_type": "llava", "text_config": {}}, "vision_config"),
        ({"model_type": "llava", "vision_config": [], "text_config": {}}, "vision_config"),
    ],
)
def test_bad_configs_name_the_field(config: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        subject_from("x", config)

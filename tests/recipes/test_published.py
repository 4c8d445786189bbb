"""Recipes of published models: every one plans, and its facts make the number of parameters that was published."""

from __future__ import annotations

import pytest

from vlm_edge.core.recipe import Recipe, load_recipe, recipe_names
from vlm_edge.core.resources import resource_dir
from vlm_edge.pipeline.inputs import find_model
from vlm_edge.pipeline.plan import PlanOptions, make_report

NAMES = [name for name in recipe_names() if name != "nano"]
# Named in the planner's specification.
LISTED = {
    "llava-1.5-7b", "llava-1.5-13b", "llava-next-mistral-7b", "llava-next-34b", "internvl2.5-1b", "internvl2.5-26b",
    "internvl3-1b", "internvl3-14b", "qwen2-vl-7b", "qwen2.5-vl-3b", "qwen2.5-vl-7b", "qwen2.5-vl-72b", "smolvlm-256m",
    "smolvlm-500m", "smolvlm-2.2b", "idefics3-8b", "paligemma-3b-224", "paligemma-3b-448", "paligemma-3b-896",
    "llama-3.2-vision-11b",
}  # fmt: skip
CLIP_LEFT_OUT = 12_598_272
"""CLIP-L's last layer and the norm behind it (2 x 1024): published, and never read by LLaVA."""


def recipe(name: str) -> Recipe:
    return load_recipe(resource_dir("recipes") / f"{name}.yaml")


def test_the_models_that_were_promised_are_there() -> None:
    assert set(NAMES) >= LISTED


@pytest.mark.parametrize("name", NAMES)
def test_the_facts_make_the_published_number_of_parameters(name: str) -> None:
    model, subject = recipe(name).model, find_model(name).subject
    assert model is not None
    assert model.source.startswith("https://huggingface.co/")
    assert model.confirmed
    assert model.parameters_source
    assert subject.vision is not None
    assert subject.projector is not None
    total = subject.vision.parameters + subject.projector.parameters + subject.text.parameters
    if "rounded" in model.parameters_source or "half the bytes" in model.parameters_source:
        assert total == pytest.approx(model.parameters, rel=0.005)
    elif name.startswith("llava"):
        assert total + CLIP_LEFT_OUT == model.parameters
    else:
        assert total == model.parameters


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_plans_within_its_own_limits(name: str) -> None:
    report = make_report(name, PlanOptions(budget="1000GiB"))
    assert report.plan.fits
    assert report.plan.visual_tokens > 0
    assert report.request.context >= recipe(name).limits.max_model_len

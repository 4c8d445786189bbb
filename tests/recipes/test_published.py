"""Recipes of published models: every one plans, and its facts make the number of parameters that was published."""

from __future__ import annotations

import pytest

from vlm_edge.core.device import DeviceProfile, load_profile, profile_names
from vlm_edge.core.recipe import Recipe, load_recipe, recipe_names
from vlm_edge.core.resources import resource_dir
from vlm_edge.memory.phases import Plan
from vlm_edge.memory.plan import CUDA_RUNTIME_BYTES, RUNTIME_BYTES, plan_request
from vlm_edge.memory.request import Request
from vlm_edge.pipeline.planning.inputs import Planned, find_model
from vlm_edge.pipeline.planning.plan import PlanOptions, make_report

NAMES = [name for name in recipe_names() if name != "nano"]
MODELS = {name: find_model(name) for name in NAMES}
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
def test_facts_say_what_they_were_compared_with(name: str) -> None:
    model = recipe(name).model
    assert model is not None
    assert any(word in model.confirmed for word in ("read from", "prints", "not verified"))
    assert any(word in model.parameters_source for word in ("not verified", "rounded", "half the bytes"))


@pytest.mark.parametrize("device", profile_names())
def test_every_recipe_plans_on_every_device(device: str) -> None:
    """Whatever devices a recipe names, it has a plan on all; where it does not fit, its peak and advice say so."""
    profile = load_profile(device)
    for name, model in MODELS.items():
        plan = plan_on(model, profile)
        assert plan.peak_bytes > model.subject.text.embedding_parameters, name
        assert plan.fits == (plan.peak_bytes <= profile.usable_bytes.value), name


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_fits_the_devices_that_it_names(name: str) -> None:
    devices = recipe(name).devices
    assert devices
    for device in devices:
        plan = make_report(name, PlanOptions(device=device)).plan
        assert plan.peak_bytes <= load_profile(device).usable_bytes.value, device


def test_what_fits_a_device_is_what_one_would_expect() -> None:
    fits = {
        device: {name for name, model in MODELS.items() if plan_on(model, load_profile(device)).fits}
        for device in ("rtx-4090", "rtx-3060", "jetson-orin-nano-8gb", "h200")
    }
    assert {"llava-1.5-7b", "internvl3-14b"} <= fits["rtx-4090"]
    assert "qwen2.5-vl-72b" not in fits["rtx-4090"]
    assert "qwen2.5-vl-72b" in fits["h200"]
    assert {"smolvlm-256m", "internvl3-1b"} <= fits["jetson-orin-nano-8gb"] < fits["rtx-3060"] < fits["rtx-4090"]


def plan_on(model: Planned, profile: DeviceProfile) -> Plan:
    """As `plan` asks it, with a page at 300 DPI, of which the largest families show as much as they do of any image."""
    cpu = profile.target == "cpu"
    request = Request(
        target=profile.target, unified=profile.unified_memory, weights=model.weights, group_size=model.group_size,
        vision_dtype="fp32" if cpu else "fp16", kv_cache="fp32" if cpu else "fp16", image_px=(1240, 1754),
        tiles=model.tiles, context=min(model.max_model_len or 4096, model.subject.text.max_positions),
        runtime_bytes=RUNTIME_BYTES if cpu else CUDA_RUNTIME_BYTES,
    )  # fmt: skip
    return plan_request(model.subject, request, budget_bytes=profile.usable_bytes.value)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_plans_within_its_own_limits(name: str) -> None:
    report = make_report(name, PlanOptions(budget="1000GiB"))
    assert report.plan.fits
    assert report.plan.visual_tokens > 0
    assert report.request.context >= recipe(name).limits.max_model_len

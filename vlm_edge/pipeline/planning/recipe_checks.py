"""Whether a recipe can be followed: its words, what its family allows, and that what it describes can be planned."""

from __future__ import annotations

from dataclasses import dataclass

from vlm_edge.core import discover
from vlm_edge.core.manifest_checks import out_of_range
from vlm_edge.core.recipe import (
    KV_CACHES,
    LLM_WEIGHTS,
    LM_HEADS,
    VISION_WEIGHTS,
    Packing,
    Recipe,
    find_recipe,
    load_recipe,
)
from vlm_edge.core.resources import nearest
from vlm_edge.errors import BadInput, VlmEdgeError
from vlm_edge.pipeline.answering.options import AskOptions, Look
from vlm_edge.pipeline.planning.inputs import of_recipe
from vlm_edge.pipeline.planning.plan import PlanOptions, report_on
from vlm_edge.units import format_bytes, format_pair

_ENOUGH = "100000GiB"
"""A budget for everything: whether a device can hold the model is `plan`'s question."""


@dataclass(frozen=True)
class Checked:
    """One recipe. problem and fix: the first thing that is wrong, empty without one.  about: what a good one comes to."""

    name: str
    problem: str = ""
    fix: str = ""
    about: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problem


def check(name: str) -> Checked:
    """Read and follow one recipe; what is wrong with its content is told in the result.

    Raises BadInput where there is no such recipe at all.
    """
    path = find_recipe(name)
    if not path.is_file():
        raise BadInput(f"{path} does not exist", remedy="name a recipe's file, or one that vlm-edge recipes list shows")
    try:
        return Checked(name, about=_follow(load_recipe(path)))
    except VlmEdgeError as found:
        return Checked(name, found.message, found.remedy)


_WORDS = {"llm": LLM_WEIGHTS, "vision": VISION_WEIGHTS, "lm_head": LM_HEADS, "kv_cache": KV_CACHES}


def check_words(recipe: Recipe) -> None:
    """Raise BadInput for a number out of range, a word that means nothing, or what the family does not allow."""
    if wrong := out_of_range(recipe):
        raise BadInput(wrong, remedy="correct the field; vlm-edge recipes schema tells what it may hold")
    packing = recipe.packing
    for key, words in _WORDS.items():
        if (value := getattr(packing, key)) not in words:
            raise BadInput(f"packing.{key} has no value {value!r}", remedy=nearest(value, list(words)))
    for key in ("lm_head", "kv_cache") if packing.llm != "int4" else ():
        if getattr(packing, key) != getattr(Packing(), key):
            raise BadInput(f"packing.{key} is for decoders in int4, not in {packing.llm}", remedy="leave it out")
    if packing.group_size < 1:
        raise BadInput(f"packing.group_size is {packing.group_size}", remedy="use 1 or more; 128 is usual")
    family = discover.family(recipe.family)
    for key in ("view_tokens", "join_rows"):
        if getattr(recipe, key) and not family.free_tiles:
            raise BadInput(
                f"{key} is for tiles that may lie anywhere, and {recipe.family} has rules of its own",
                remedy="leave it out",
            )
    Look.of(AskOptions(), recipe.defaults, recipe.limits.max_tiles, family)


def _follow(recipe: Recipe) -> str:
    """Raise BadInput for the first thing that is wrong; returns the plan in a line, where the recipe has a model."""
    check_words(recipe)
    if recipe.model is None:
        if recipe.devices:
            raise BadInput("devices are checked by planning, and the recipe has no model", remedy="leave devices out")
        return "packs a checkpoint that is at hand"
    model = of_recipe(recipe)
    report = report_on(model, PlanOptions(budget=_ENOUGH))
    for device in recipe.devices:
        plan = report_on(model, PlanOptions(device=device)).plan
        if not plan.fits:
            needed, usable = format_pair(plan.peak_bytes, plan.budget_bytes)
            raise BadInput(
                f"it does not fit {device}: {needed} of {usable}", remedy="lower its limits, or leave that out"
            )
    peak, visual = format_bytes(report.plan.peak_bytes), report.plan.visual_tokens
    return f"{peak} with {visual} visual tokens in a context of {report.request.context}"

"""What a build's steps are planned to hold, against what a 7B shape was measured to hold."""

from __future__ import annotations

import pytest

from vlm_edge.core.recipe import Recipe, find_recipe, load_recipe
from vlm_edge.errors import DoesNotFit
from vlm_edge.pipeline.building.plan import QUANTIZE, Effort, StepPlan, check_steps, step_plans
from vlm_edge.pipeline.planning.inputs import of_recipe

GIB = 1 << 30
MEASURED_BYTES = 5_520_433_152
"""The peak of rounding llava-1.5-7b for a CPU, its decoder loaded for the comparison (benchmarks/dress_rehearsal.py): the system's
record, mapped files and the moment in which the largest matrix is held twice included."""
RTN = Effort("cpu", "rtn", samples=32, seqlen=1024)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(find_recipe("llava-1.5-7b"))


def quantizing(recipe: Recipe, effort: Effort) -> StepPlan:
    return next(step for step in step_plans(of_recipe(recipe), recipe, effort) if step.name == QUANTIZE)


def test_with_room_the_finished_decoder_is_planned_to_be_loaded(recipe: Recipe) -> None:
    planned = quantizing(recipe, RTN).within(12 * GIB)
    assert MEASURED_BYTES < planned < 1.1 * MEASURED_BYTES


def test_without_that_room_a_step_does_with_less(recipe: Recipe) -> None:
    step = quantizing(recipe, RTN)
    assert step.within(4 * GIB) == step.least_bytes < 3 * GIB
    assert step.within(step.peak_bytes - 1) == step.least_bytes
    # nothing fits: it is the least that is refused
    assert step.within(GIB) == step.least_bytes
    with pytest.raises(DoesNotFit, match=r"quantize needs 2\.\d GiB"):
        check_steps([step], GIB)


def test_hidden_states_in_memory_are_a_grade_of_their_own(recipe: Recipe) -> None:
    few, many = (quantizing(recipe, Effort("cpu", "awq", samples, seqlen=1024)) for samples in (32, 512))
    # 32 samples of which 8 are held out and kept three times, in fp32
    assert few.peaks_bytes[1] - few.least_bytes == (32 + 2 * 8) * 1024 * 4096 * 4
    assert len(few.peaks_bytes) == 3
    # with many the states are more than the loaded decoder
    assert len(many.peaks_bytes) == 2
    assert many.within(many.peak_bytes - 1) == many.least_bytes

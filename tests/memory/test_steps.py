"""Plans of export, calibration and engine build."""

from __future__ import annotations

from tests.memory.subjects import LLAVA, QWEN
from vlm_edge.memory.quantize_plan import plan as quantize_plan
from vlm_edge.memory.quantize_plan import sizes_of
from vlm_edge.memory.request import Request, Subject
from vlm_edge.memory.steps import TORCH_RUNTIME_BYTES, step_plans


def test_export_holds_the_tower_in_fp32_twice() -> None:
    plan = step_plans(LLAVA, Request(tiles=0), budget_bytes=1 << 40)["export"]
    fp32 = 4 * (290_909_184 + 20_979_712)
    assert plan.phases["write"] == TORCH_RUNTIME_BYTES + 2 * fp32
    assert plan.peak_phase == "compare"


def test_calibration_is_planned_as_quantize_plans_it() -> None:
    plan = step_plans(LLAVA, Request(tiles=0), budget_bytes=1 << 40)["calibrate"]
    sizes = sizes_of(LLAVA, group_size=128, samples=32, longest=1024)
    assert sizes.states == (32 + 2 * 8) * 1024 * 4096
    assert plan.peak_bytes == quantize_plan(sizes, TORCH_RUNTIME_BYTES, method="awq").resident
    # the point of going layer by layer: far less than the 16-bit decoder
    assert plan.peak_bytes < LLAVA.text.linear_parameters


def test_export_does_not_depend_on_the_image_that_is_run_later() -> None:
    small, large = (
        step_plans(QWEN, Request(image_px=size, context=20_000), budget_bytes=1 << 40)
        for size in ((448, 448), (3000, 2000))
    )
    assert small["export"] == large["export"]
    assert small["build"].peak_bytes < large["build"].peak_bytes


def test_a_text_model_has_nothing_to_export() -> None:
    assert set(step_plans(Subject("text", LLAVA.text), Request(images=0), budget_bytes=1)) == {"calibrate"}

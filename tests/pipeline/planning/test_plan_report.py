"""What a command line becomes: defaults, golden reports (T2), the page and the chart."""

from __future__ import annotations

import builtins
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlm_edge.core.recipe import load_recipe
from vlm_edge.core.resources import resource_dir
from vlm_edge.errors import BadInput, MissingDependency
from vlm_edge.pipeline.planning.chart import draw_chart
from vlm_edge.pipeline.planning.page import page, write_page
from vlm_edge.pipeline.planning.plan import PlanOptions, make_report, to_json
from vlm_edge.pipeline.written import check_output
from vlm_edge.units import GIB, MIB

GOLDEN = Path(__file__).parents[2] / "data/plans"
CASES: dict[str, tuple[str, PlanOptions]] = {
    "llava-1.5-7b_rtx-4090": ("llava-1.5-7b", PlanOptions(device="rtx-4090")),
    "qwen2.5-vl-7b_8gib": ("qwen2.5-vl-7b", PlanOptions(budget="8GiB", image_size="1344x896")),
    "internvl3-8b_orin-nx": ("internvl3-8b", PlanOptions(device="jetson-orin-nx-16gb", image_size="3000x2000")),
    "llama-3.2-vision-11b_l4": ("llama-3.2-vision-11b", PlanOptions(device="l4", images=2, kv_cache_dtype="int8")),
    "paligemma-3b-448_cpu": ("paligemma-3b-448", PlanOptions(device="cpu-generic", lm_head="int4")),
    "smolvlm-256m_solve": ("smolvlm-256m", PlanOptions(budget="4GB", solve="batch")),
}


def rounded(value: Any) -> Any:
    """Times to a thousandth of a millisecond: the last bits of a float are the machine's."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("case", CASES)
def test_reports_are_as_they_were(case: str) -> None:
    """A change of a formula shows here byte by byte: look at it, then write the files again with tests/data/plans/write.py."""
    model, options = CASES[case]
    found = rounded(json.loads(json.dumps(to_json(make_report(model, options), "vlm-edge plan ..."))))
    assert found == json.loads((GOLDEN / f"{case}.json").read_text("utf-8"))


def test_the_contracts_keys() -> None:
    plain = to_json(make_report("llava-1.5-7b", PlanOptions(device="rtx-4090")), "x")
    assert {
        "fits", "budget_bytes", "peak_bytes", "peak_phase", "phases", "items", "visual_tokens", "latency", "advice", "limits",
    } <= set(plain)  # fmt: skip
    assert {"name", "bytes", "dtype", "formula", "phases", "basis"} <= set(plain["items"][0])
    assert set(plain["limits"]) == {"max_tiles", "max_model_len", "max_pixels", "batch_size"}
    assert {"encode_ms", "prefill_ms", "ttft_ms", "ms_per_token"} <= set(plain["latency"])
    assert {item["basis"] for item in plain["items"]} <= {"exact", "bound", "measured"}
    for phase, total in plain["phases"].items():
        assert total == sum(i["bytes"] for i in plain["items"] if phase in i["phases"] and i["memory"] == "device")


def report(**options: Any) -> Any:
    return make_report("llava-1.5-7b", PlanOptions(**{"budget": "24GiB"} | options))


def test_defaults_are_those_of_the_contract() -> None:
    request = report().request
    assert (request.weights, request.group_size, request.lm_head, request.kv_cache, request.vision_dtype) == (
        "awq", 128, "fp16", "fp16", "fp16",
    )  # fmt: skip
    assert (request.target, request.images, request.margin_bytes) == ("cuda", 1, 512 * MIB)
    on_cpu = report(target="cpu").request
    assert (on_cpu.kv_cache, on_cpu.vision_dtype, on_cpu.margin_bytes) == ("fp32", "fp32", 0)


def test_decimal_and_binary_budgets_differ() -> None:
    assert report(budget="24GB").plan.budget_bytes == 24 * 10**9
    assert report(budget="24GiB").plan.budget_bytes == 24 * GIB


def test_the_budget_is_the_devices_unless_it_is_named() -> None:
    assert report(budget=None, device="rtx-4090").plan.budget_bytes == 24564 * MIB
    assert report(device="rtx-4090", budget="1GiB").plan.budget_bytes == GIB


@pytest.mark.parametrize(("device", "target"), [("rtx-4090", "cpu"), ("cpu-generic", "cuda")])
def test_a_devices_memory_is_no_budget_for_another_target(device: str, target: str) -> None:
    with pytest.raises(BadInput, match=f"{device} runs what is built for .*no budget for {target}"):
        report(budget=None, device=device, target=target)


def test_the_cpu_of_a_jetson_has_its_memory_and_not_its_rates() -> None:
    found = report(budget=None, device="jetson-orin-nano-8gb", target="cpu")
    assert found.plan.budget_bytes == report(budget=None, device="jetson-orin-nano-8gb").plan.budget_bytes
    assert (found.request.target, found.latency) == ("cpu", None)


def test_unified_memory_holds_what_the_host_does() -> None:
    apart, unified = report(device="rtx-4090").plan, report(device="jetson-agx-orin-64gb").plan
    assert apart.host_peak_bytes > 0
    assert unified.host_peak_bytes == 0
    assert unified.phases["preprocess"] > apart.phases["preprocess"]


def test_the_context_grows_for_visual_tokens_that_need_it() -> None:
    found = make_report("qwen2.5-vl-7b", PlanOptions(budget="900GiB", image_size="3500x3500"))
    assert found.plan.visual_tokens == 15625
    assert found.request.context == 16384
    assert any("context" in note for note in found.notes)
    with pytest.raises(BadInput, match="leave no room"):
        make_report("qwen2.5-vl-7b", PlanOptions(budget="900GiB", image_size="3500x3500", max_model_len=4096))


def test_a_merge_by_threshold_saves_nothing_for_certain() -> None:
    merged = report(reduce="threshold")
    assert merged.plan.visual_tokens == report().plan.visual_tokens
    assert any("threshold" in note for note in merged.notes)
    assert report(reduce="random", keep=0.25).plan.visual_tokens == 5 * 144


def test_without_tiling_the_image_is_one_view() -> None:
    assert report(tiling="none").plan.visual_tokens == 576
    assert report(max_tiles=2).plan.visual_tokens == 3 * 576


OWN_RULES = {
    "internvl3-8b": 6,
    "idefics3-8b": 12,
    "llava-next-mistral-7b": 4,
    "qwen2.5-vl-7b": 0,
    "paligemma-3b-448": 0,
}
"""Into how many tiles the family's rules cut an image of 1500 x 1000 px."""


@pytest.mark.parametrize("name", OWN_RULES)
def test_a_number_of_tiles_is_a_limit_where_the_family_has_rules(name: str) -> None:
    def planned(**options: Any) -> Any:
        return make_report(name, PlanOptions(budget="900GiB", image_size="1500x1000", **options))

    tiles, own = OWN_RULES[name], planned()
    assert own.limits["max_tiles"] == tiles
    for allowed in (max(tiles, 1), tiles + 5):
        assert planned(max_tiles=allowed).plan == own.plan
    whole = planned(tiling="none")
    assert planned(max_tiles=0).plan == whole.plan
    assert whole.limits["max_tiles"] == 0
    if tiles > 1:
        with pytest.raises(BadInput, match=f"is cut into {tiles} tiles; {tiles - 1} are allowed"):
            planned(max_tiles=tiles - 1)


def test_a_recipe_may_show_images_whole_or_limit_the_familys_tiles(tmp_path: Path) -> None:
    recipe = load_recipe(resource_dir("recipes") / "internvl3-8b.yaml")
    assert recipe.model is not None
    (tmp_path / "config.json").write_text(json.dumps(recipe.model.config), "utf-8")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(recipe.model.preprocessor), "utf-8")

    def planned(how: str, **options: Any) -> Any:
        (tmp_path / "packed.yaml").write_text(f"{{name: packed, family: internvl, {how}}}", "utf-8")
        options = {"budget": "900GiB", "image_size": "1500x1000", "recipe": str(tmp_path / "packed.yaml")} | options
        return make_report(str(tmp_path), PlanOptions(**options)).plan.visual_tokens

    tiled, whole = "defaults: {tiling: grid}", "defaults: {tiling: none}"
    assert planned(f"limits: {{max_tiles: 12, max_model_len: 8192}}, {tiled}") == 7 * 256
    assert planned(f"limits: {{max_tiles: 12, max_model_len: 8192}}, {whole}") == 256
    assert planned(f"limits: {{max_tiles: 12, max_model_len: 8192}}, {whole}", tiling="grid") == 7 * 256
    with pytest.raises(BadInput, match="cut into 6 tiles; 4 are allowed"):
        planned(f"limits: {{max_tiles: 4, max_model_len: 8192}}, {tiled}")


def test_a_recipe_that_shows_images_whole_may_be_asked_for_its_tiles(tmp_path: Path) -> None:
    (tmp_path / "packed.yaml").write_text(
        "{name: packed, family: llava, limits: {max_tiles: 3, max_model_len: 4096}, defaults: {tiling: none}}", "utf-8"
    )
    model = load_recipe(resource_dir("recipes") / "llava-1.5-7b.yaml").model
    assert model is not None
    (tmp_path / "config.json").write_text(json.dumps(model.config), "utf-8")
    options = PlanOptions(budget="24GiB", recipe=str(tmp_path / "packed.yaml"))
    for tiling, views in ((None, 1), ("none", 1), ("grid", 4), ("auto", 4)):
        found = make_report(str(tmp_path), replace(options, tiling=tiling))
        assert found.plan.visual_tokens == views * 576, tiling


def test_the_inverse_stays_within_the_familys_rules() -> None:
    found = make_report("internvl3-8b", PlanOptions(budget="900GiB", solve="tiles", max_model_len=32768)).solution
    assert found is not None
    assert (found.answer, found.limited_by) == (12, "model")
    with pytest.raises(BadInput, match="every image in one view"):
        make_report("paligemma-3b-448", PlanOptions(budget="900GiB", solve="tiles"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"keep": 0.5}, "--keep is read"),
        ({"keep": 0.5, "reduce": "threshold"}, "--keep is read"),
        ({"keep": 2.0, "reduce": "random"}, "--keep"),
        ({"reduce": "half"}, "--reduce"),
        ({"tiling": "autoo"}, "--tiling"),
        ({"max_tiles": -1}, "--max-tiles"),
        ({"image_size": "big"}, "--image-size"),
        ({"image_size": "0x5"}, "--image-size"),
        ({"image_size": "99999999x5"}, "--image-size"),
        ({"vision_attention": "flash"}, "--vision-attention"),
        ({"margin": "some"}, "some"),
        ({"budget": "lots"}, "lots"),
        ({"device": "abacus"}, "abacus"),
        ({"group_size": 96}, "--group-size"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=re.escape(named)):
        report(**options)


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    options = PlanOptions(budget="8GiB", image_size="3000x2000", solve=None)
    return to_json(make_report("qwen2.5-vl-7b", options), "vlm-edge plan <qwen> & more")


def test_the_page_stands_alone_and_shows_every_part(plain: dict[str, Any], tmp_path: Path) -> None:
    write_page(plain, tmp_path / "plan.html")
    text = (tmp_path / "plan.html").read_text("utf-8")
    assert text == page(plain)
    assert not re.search(r"(src|href)=|<script|@import|url\(", text)
    assert "&lt;qwen&gt; &amp; more" in text
    for item in plain["items"]:
        assert item["name"] in text
    for line in plain["advice"]:
        assert line["change"].replace("'", "&#x27;") in text
    svg = ET.fromstring(re.search(r"<svg.*?</svg>", text, re.DOTALL)[0])  # type: ignore[index]
    alive = sum(len(item["phases"]) for item in plain["items"] if item["memory"] == "device")
    assert len(svg.findall("rect")) == alive


def test_bars_are_as_long_as_their_bytes(plain: dict[str, Any]) -> None:
    svg = ET.fromstring(re.search(r"<svg.*?</svg>", page(plain), re.DOTALL)[0])  # type: ignore[index]
    rows: dict[str, list[ET.Element]] = {}
    for bar in svg.findall("rect"):
        rows.setdefault(bar.get("y", ""), []).append(bar)
    widths = [sum(float(bar.get("width", "0")) for bar in row) for row in rows.values()]
    totals = list(plain["phases"].values())
    for width, total in zip(widths, totals, strict=True):
        assert width / widths[2] == pytest.approx(total / totals[2], abs=0.01)


def test_the_chart_is_a_picture(plain: dict[str, Any], tmp_path: Path) -> None:
    from PIL import Image

    draw_chart(plain, tmp_path / "plan.png")
    with Image.open(tmp_path / "plan.png") as image:
        assert image.width > 1000
        colors = image.convert("RGB").getcolors(1 << 24)
    assert colors is not None
    assert {(0xE8, 0x74, 0x3B), (0x1F, 0x5A, 0xA6)} <= {color for _, color in colors}  # activations and the decoder


def test_without_matplotlib_the_remedy_is_told(
    plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingDependency) as caught:
        draw_chart(plain, tmp_path / "plan.png")
    assert "vlm-edge[report]" in caught.value.remedy
    assert not (tmp_path / "plan.png").exists()


def test_outputs_are_checked_before_anything_is_planned(tmp_path: Path) -> None:
    check_output(tmp_path / "a.HTML", (".html",))
    for path, named in ((tmp_path / "a.pdf", ".html"), (tmp_path / "no/a.html", "there is no folder")):
        with pytest.raises(BadInput, match=named):
            check_output(path, (".html",))
    (tmp_path / "b.html").mkdir()
    with pytest.raises(BadInput, match="is a folder"):
        check_output(tmp_path / "b.html", (".html",))


def test_the_textbook_case_in_the_readme_is_what_the_plan_says() -> None:
    """README's table against the command beside it, figure by figure."""
    readme = (Path(__file__).parents[3] / "README.md").read_text("utf-8")
    assert (
        "plan llava-1.5-7b --device rtx-4090 --max-tiles 6 --reduce random --keep 0.869 --max-model-len 4096" in readme
    )
    options = PlanOptions(device="rtx-4090", max_tiles=6, reduce="random", keep=0.869, max_model_len=4096)
    plan = make_report("llava-1.5-7b", options).plan
    assert plan.visual_tokens == 3500
    held = {item.name: item.bytes / GIB for item in plan.items}
    rows = {
        "decoder layers, AWQ": ("llm.weights",),
        "embedding and lm_head, fp16": ("llm.embedding", "llm.lm_head"),
        "CLIP ViT-L/14-336 and projector, fp16": ("vision.weights", "projector.weights"),
        "KV cache, fp16": ("kv_cache",),
        "tower's activations": ("vision.activations",),
        "visual embeddings, prefill, decode, reserve": (
            "visual_embeddings", "prefill.activations", "logits", "decode.buffers", "reserve",
        ),
        "CUDA context and libraries": ("runtime",),
        "margin": ("margin",),
    }  # fmt: skip
    for row, names in rows.items():
        told = re.search(rf"^\| {re.escape(row)} \| ([\d.]+) \|", readme, re.MULTILINE)
        assert told, row
        assert float(told[1]) == pytest.approx(sum(held[name] for name in names), abs=0.006), row
    assert f"| **peak** | **{plan.peak_bytes / GIB:.1f}** | of {plan.budget_bytes / GIB:.1f} |" in readme

"""`vlm-edge plan`: what it prints, its exit codes, every wrong input as two lines, and what it never imports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.program import VLM_EDGE, in_checkout
from vlm_edge.cli.main import execute
from vlm_edge.core.recipe import load_recipe, recipe_names
from vlm_edge.core.resources import resource_dir

HEAVY = (
    "torch", "transformers", "onnx", "onnxruntime", "rich", "matplotlib", "tokenizers", "numpy", "PIL", "jinja2",
    "safetensors", "vlm_edge.cli.run", "vlm_edge.cli.export", "vlm_edge.vision.resize",
)  # fmt: skip
"""What a plan must not wait for: frameworks, libraries of arrays and pictures, other commands."""

RECIPE_OF_FAMILY = {
    "llava": "llava-1.5-7b", "llava_next": "llava-next-mistral-7b", "internvl": "internvl2.5-8b",
    "idefics3": "smolvlm-256m", "paligemma": "paligemma-3b-224", "qwen2_vl": "qwen2-vl-7b",
    "qwen2_5_vl": "qwen2.5-vl-7b", "mllama": "llama-3.2-vision-11b",
}  # fmt: skip


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that must fail with two lines and exit code 2; returns them."""

    def run(*arguments: str) -> str:
        assert execute(["plan", *arguments]) == 2
        shown = capsys.readouterr()
        assert [line.split(":")[0] for line in shown.err.splitlines()] == ["error", "fix"], shown.err
        assert shown.out == ""
        return shown.err

    return run


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., str]:
    """A LLaVA config.json with one field of text_config changed; `...` takes it out."""

    def write(**changes: object) -> str:
        model = load_recipe(resource_dir("recipes") / "llava-1.5-7b.yaml").model
        assert model is not None
        text = {**model.config["text_config"], **changes}
        text = {key: value for key, value in text.items() if value is not ...}
        path = tmp_path / "config.json"
        path.write_text(json.dumps(model.config | {"text_config": text}), "utf-8")
        return str(path)

    return write


def test_it_fits_and_says_where_every_byte_goes(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["plan", "llava-1.5-7b", "--device", "rtx-4090"]) == 0
    shown = capsys.readouterr()
    for part in ("llm.weights", "vision.weights", "kv_cache", "prefill", "fits:", "forecast:", "calibrate"):
        assert part in shown.out
    assert "1920 x 1080" in shown.err


def test_what_does_not_fit_is_exit_1_with_advice(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["plan", "llava-1.5-13b", "--budget", "8GiB", "--json"]) == 1
    plain = json.loads(capsys.readouterr().out)
    assert (plain["fits"], plain["budget_bytes"]) == (False, 8 << 30)
    assert plain["advice"]
    assert execute(["plan", "llava-1.5-13b", "--budget", "8GiB"]) == 1
    assert "What would help" in capsys.readouterr().out


def test_json_is_one_object_and_nothing_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ["plan", "qwen2.5-vl-3b", "--device", "l4", "--json", "--image-size", "1344x896"]
    monkeypatch.setattr("sys.argv", ["vlm-edge", *typed])
    assert execute(typed) == 0
    plain: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert plain["visual_tokens"] == 1536
    assert plain["limits"]["max_pixels"] == 1344 * 896
    assert plain["command"] == " ".join(["vlm-edge", *typed])


@pytest.mark.parametrize("unknown", ["tiles", "context", "batch", "pixels"])
def test_the_inverse_is_told(unknown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["plan", "llava-1.5-7b", "--budget", "12GiB", "--solve", unknown, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["solve"]["unknown"] == unknown
    assert plain["solve"]["answer"] > 0
    assert plain["fits"]
    assert execute(["plan", "llava-1.5-7b", "--budget", "12GiB", "--solve", unknown]) == 0
    assert f"most {unknown}: {plain['solve']['answer']}" in capsys.readouterr().out


def test_a_question_that_nothing_fits_is_exit_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["plan", "llava-1.5-7b", "--budget", "1GiB", "--solve", "tiles"]) == 1
    assert capsys.readouterr().err.splitlines()[0].startswith("error: tiles 0 already needs")


def test_page_and_chart_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    html, png = tmp_path / "plan.html", tmp_path / "plan.png"
    assert execute(["plan", "nano", "--budget", "1GiB", "--html", str(html), "--png", str(png), "--quiet"]) == 0
    assert "<svg" in html.read_text("utf-8")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "nano" in capsys.readouterr().out


def test_text_models_plan_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(text), "utf-8")
    assert execute(["plan", str(tmp_path), "--device", "rtx-3060", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    total = sum(item["bytes"] for item in plain["items"] if item["name"].startswith("llm."))
    assert total / 1e9 == pytest.approx(5.57, abs=0.01)  # Qwen2.5-7B AWQ, as published
    assert plain["visual_tokens"] == 0


def test_unknown_names_bring_the_nearest(refused: Callable[..., str]) -> None:
    assert "llava-1.5-7b" in refused("llava-1.5-7", "--device", "rtx-4090")
    assert "rtx-4090" in refused("llava-1.5-7b", "--device", "rtx-4091")
    assert "there are" in refused("wholly-unknown-thing", "--budget", "1GiB")


@pytest.mark.parametrize("budget", ["24", "24GX", "GiB", "-1GiB", "1e3GiB", "lots", "0x10GiB", ""])
def test_budgets_in_unknown_units(budget: str, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    if budget == "24":  # a plain number is bytes: understood, and far too little
        assert execute(["plan", "nano", "--budget", budget]) == 1
        capsys.readouterr()
        return
    refused("llava-1.5-7b", "--budget", budget)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": "4096"}, "text_config.hidden_size must be a whole number"),
        ({"num_hidden_layers": None}, "text_config.num_hidden_layers"),
        ({"num_hidden_layers": -1}, "text_config.num_hidden_layers"),
        ({"num_hidden_layers": 10**9}, "text_config.num_hidden_layers"),
        ({"vocab_size": 4.5}, "text_config.vocab_size"),
        ({"num_attention_heads": 33}, "does not divide"),
        ({"num_key_value_heads": 5}, "does not divide"),
        ({"model_type": "lama"}, "'lama' is not supported"),
    ],
)
def test_configs_that_contradict_themselves(
    changes: dict[str, object], named: str, config: Callable[..., str], refused: Callable[..., str]
) -> None:
    assert named in refused(config(**changes), "--budget", "24GiB")


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"config": {"vision_config": "clip"}}, "vision_config must be a JSON object"),
        ({"config": {"vision_config": {"hidden_size": "1024"}}}, "vision_config.hidden_size must be a whole number"),
        ({"config": {"vision_config": {"hidden_size": 1000}}}, "does not divide"),
        ({"config": {"vision_config": {"image_size": -336}}}, "vision_config.image_size"),
        ({"config": {"vision_config": {"image_size": 10**9}}}, "vision_config.image_size"),
        ({"config": {"vision_config": {"patch_size": 0}}}, "vision_config.patch_size"),
        ({"config": {"vision_config": {"patch_size": 500}}}, "patch_size"),
        ({"config": {"vision_config": {"model_type": "resnet"}}}, "resnet"),
        ({"config": {"vision_feature_layer": 99}}, "vision_feature_layer"),
        ({"config": {"vision_feature_layer": "last"}}, "vision_feature_layer"),
        ({"config": {"model_type": ["llava"]}}, "model_type"),
        ({"config": {"model_type": None}}, "model_type"),
        ({"config": {"tie_word_embeddings": "yes"}}, "tie_word_embeddings"),
        ({"preprocessor_config": {"size": {"height": 224, "width": 224}}}, "views of 224 px"),
        ({"preprocessor_config": {"size": {"height": "336", "width": 336}}}, "size"),
        ({"preprocessor_config": {"size": {"height": 336, "width": -1}}}, "size"),
        ({"preprocessor_config": {"image_processor_type": "DonutImageProcessor"}}, "image_processor_type"),
        ({"processor_config": {"image_processor": {"size": {"height": 224, "width": 224}}}}, "views of 224 px"),
        ({"processor_config": {"image_processor": {"do_resize": "no"}}}, "do_resize"),
    ],
)
def test_files_that_contradict_each_other_or_say_what_cannot_be(
    files: dict[str, dict[str, object]], named: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    model = load_recipe(resource_dir("recipes") / "llava-1.5-7b.yaml").model
    assert model is not None
    changes = files.get("config", {})
    vision = changes.get("vision_config")
    if isinstance(vision, dict):
        changes = changes | {"vision_config": model.config["vision_config"] | vision}
    (tmp_path / "config.json").write_text(json.dumps(model.config | changes), "utf-8")
    for name in files.keys() - {"config"}:
        plain = model.preprocessor | files[name] if name == "preprocessor_config" else files[name]
        (tmp_path / f"{name}.json").write_text(json.dumps(plain), "utf-8")
    assert named in refused(str(tmp_path), "--budget", "24GiB")


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "7", '"llava"', "{", "[" * 100_000, '{"model_type": "llava"}', "\udcff", '{"a": NaN}']
)
def test_a_config_that_is_none(text: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(str(tmp_path / "config.json"), "--budget", "24GiB")


def test_a_model_type_without_a_spec(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava_onevision"}', "utf-8")
    shown = refused(str(tmp_path), "--budget", "24GiB")
    assert "'llava_onevision' is not supported" in shown
    assert "llava" in shown


def test_missing_fields(config: Callable[..., str], refused: Callable[..., str], tmp_path: Path) -> None:
    refused(str(tmp_path / "config.json"), "--budget", "1GiB")
    (tmp_path / "config.json").write_text('{"model_type": "llava", "text_config": {}}', "utf-8")
    assert "vision_config is missing" in refused(str(tmp_path), "--budget", "1GiB")
    (tmp_path / "config.json").write_text("{}", "utf-8")
    assert "model_type" in refused(str(tmp_path), "--budget", "1GiB")
    (tmp_path / "config.json").write_text('{"a": 1, "a": 2}', "utf-8")
    assert "twice" in refused(str(tmp_path), "--budget", "1GiB")
    assert config


@pytest.mark.parametrize(
    "arguments",
    [
        ("--image-size", "-5x7"),
        ("--image-size", "1920"),
        ("--image-size", "99999999999x1"),
        ("--images", "-1"),
        ("--images", "100000"),
        ("--max-model-len", "0"),
        ("--max-model-len", "999999999"),
        ("--max-model-len", "100"),
        ("--batch-size", "0"),
        ("--batch-size", "999999999"),
        ("--group-size", "100"),
        ("--group-size", "-128"),
        ("--group-size", "0"),
        ("--weights", ""),
        ("--kv-cache-dtype", "int2"),
        ("--weights", "gptq"),
        ("--lm-head", "nf4"),
        ("--vision-dtype", "int4"),
        ("--vision-attention", "sdpa"),
        ("--target", "tpu"),
        ("--tiling", "autoo"),
        ("--max-tiles", "-1"),
        ("--max-tiles", "100000"),
        ("--reduce", "zip"),
        ("--keep", "0"),
        ("--keep", "0.5"),
        ("--margin", "x"),
        ("--solve", "everything"),
        ("--html", "plan.pdf"),
        ("--png", "missing/plan.png"),
        ("--recipe", "nowhere.yaml"),
        ("--no-such-option",),
    ],
)
def test_values_that_cannot_be(arguments: tuple[str, ...], refused: Callable[..., str]) -> None:
    refused("llava-1.5-7b", "--budget", "24GiB", *arguments)


def test_files_that_hold_another_decoder(tmp_path: Path, refused: Callable[..., str]) -> None:
    source = resource_dir("recipes") / "nano/checkpoint"
    if not source.is_dir():
        pytest.skip("an installed wheel has no checkpoint")
    config = json.loads((source / "config.json").read_text("utf-8"))
    config["text_config"]["num_hidden_layers"] = 5
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    assert "the files hold" in refused(str(tmp_path), "--budget", "1GiB")


def test_a_plan_loads_no_framework_and_no_weights(tmp_path: Path) -> None:
    """One recipe of each family, so that none's settings bring NumPy along."""
    program = f"""
import sys, json
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from vlm_edge.cli.main import execute
for model in {[*RECIPE_OF_FAMILY.values()]!r}:
    sys.argv = ["vlm-edge", "plan", model, "--device", "h200", "--json", "--quiet"]
    code = execute(sys.argv[1:])
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    weights = [name for name in opened if name.endswith((".safetensors", ".onnx", ".data"))]
    print(json.dumps([model, code, heavy, weights]), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, **in_checkout(tmp_path)
    )
    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert told == [[model, 0, [], []] for model in RECIPE_OF_FAMILY.values()]


def test_every_family_with_a_published_recipe_is_among_them() -> None:
    published = [load_recipe(resource_dir("recipes") / f"{name}.yaml") for name in recipe_names()]
    assert {recipe.family for recipe in published if recipe.model is not None} == {*RECIPE_OF_FAMILY}


def test_the_program_itself(tmp_path: Path) -> None:
    done = subprocess.run(
        [*VLM_EDGE, "plan", "smolvlm-256m", "--device", "jetson-orin-nano-8gb"],
        capture_output=True, text=True, check=False, **in_checkout(tmp_path),
    )  # fmt: skip
    assert (done.returncode, "fits:" in done.stdout) == (0, True)

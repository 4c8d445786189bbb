"""The int4 decoder of `quantize --target`: its bytes are the builder's, its tokens those of transformers on the rounded weights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime_genai")

from tests import quantizable  # noqa: E402
from tests.pipeline.quantizing.test_quantize import loaded, weights_of  # noqa: E402
from tests.quantizable import OPTIONS  # noqa: E402
from tests.tiny_decoders import builder_in_process  # noqa: E402
from vlm_edge.backends.onnx import int4_decoder, layered, parity  # noqa: E402
from vlm_edge.backends.onnx.engine import OnnxEngine  # noqa: E402
from vlm_edge.core.bundle import open_bundle, verify_hashes  # noqa: E402
from vlm_edge.core.checkpoint import open_checkpoint  # noqa: E402
from vlm_edge.core.recipe import LM_HEADS  # noqa: E402
from vlm_edge.errors import BadInput, CheckFailed  # noqa: E402
from vlm_edge.models.subjects import subject_from  # noqa: E402
from vlm_edge.pipeline.checking.verify import verify_bundle  # noqa: E402
from vlm_edge.pipeline.exporting.export import ExportOptions, export_model  # noqa: E402
from vlm_edge.pipeline.quantizing import int4_export  # noqa: E402
from vlm_edge.pipeline.quantizing.quantize import quantize_model  # noqa: E402

KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
FAMILIES = ("llava", "llava_next", "internvl", "idefics3", "idefics2", "paligemma", "qwen2_vl", "qwen2_5_vl")
RTN = replace(OPTIONS, method="rtn", target="cpu")
STEPS = 24


@pytest.fixture(scope="module", autouse=True)
def _builder() -> Iterator[None]:
    with builder_in_process():
        yield


def graph_of(folder: Path) -> Any:
    return onnx.load(str(folder / "model.onnx"))


def arrays(model: Any) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_packed_weights_are_those_of_the_builder(kind: str, tmp_path: Path) -> None:
    """onnxruntime-genai's builder reads the AWQ checkpoint by itself; it keeps gate and up apart."""
    quantizable.save_text(tmp_path / "model", kind, num_key_value_heads=2, vocab_size=104)
    quantize_model(tmp_path / "model", tmp_path / "out", RTN)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(tmp_path / "out/llm/awq")]
    command += ["-o", str(tmp_path / "theirs"), "-p", "int4", "-e", "cpu", "-c", str(tmp_path / "cache")]
    options = ["exclude_embeds=true", "prune_lm_head=true", "hf_token=false"]
    done = subprocess.run([*command, "--extra_options", *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = arrays(graph_of(tmp_path / "out/llm/cpu")), arrays(graph_of(tmp_path / "theirs"))
    compared = 0
    for layer in range(2):
        for name, parts in {
            "attn.qkv_proj": ["attn.qkv_proj"], "attn.o_proj": ["attn.o_proj"], "mlp.down_proj": ["mlp.down_proj"],
            "mlp.gate_up_proj": ["mlp.gate_proj", "mlp.up_proj"],
        }.items():  # fmt: skip
            for leaf in ("qweight", "scales", "qzeros"):
                mine = ours[f"model.layers.{layer}.{name}.MatMulNBits.{leaf}"]
                expected = [theirs[f"model.layers.{layer}.{part}.MatMulNBits.{leaf}"].ravel() for part in parts]
                assert mine.dtype == expected[0].dtype
                np.testing.assert_array_equal(mine.ravel(), np.concatenate(expected))
                compared += 1
    assert compared == 24
    for name in (n for n in theirs if "norm" in n or "bias" in n or "cache" in n):
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.fixture(scope="module", params=KINDS)
def quantized(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any, dict[str, Any]]:
    """OUT, the model with its rounded weights in transformers, and the report."""
    folder = tmp_path_factory.mktemp(request.param)
    model = quantizable.save_text(folder / "model", request.param, num_key_value_heads=2, num_hidden_layers=3)
    report = quantize_model(folder / "model", folder / "out", RTN).report
    return folder, loaded(model, weights_of(folder / "out")), dict(report)


def test_greedy_tokens_are_those_of_transformers_on_the_rounded_weights(
    quantized: tuple[Path, Any, dict[str, Any]],
) -> None:
    folder, model, report = quantized
    config = open_checkpoint(folder / "model").config
    text = subject_from("text", config).text
    # Mapped weights are multiplied in floats, so that nothing but the order of additions differs.
    engine = OnnxEngine(folder / "out/llm/cpu/model.onnx", text, target="cpu", threads=1, context=64, mapped=True)
    prompt = torch.randint(3, text.vocab, (1, 30), generator=torch.Generator().manual_seed(3))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model.generate(
            prompt, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True, output_logits=True
        )  # fmt: skip
    table = model.get_input_embeddings()
    logits = engine.forward(table(prompt)[0].detach().numpy())
    for step in range(STEPS):
        wanted = expected.logits[step][0].numpy()
        np.testing.assert_allclose(logits, wanted, atol=2e-4 * np.abs(wanted).max())
        first, second = np.sort(wanted)[[-1, -2]]
        token = int(expected.sequences[0, 30 + step])
        if (
            first - second >= int4_export.GAP and int(wanted.argmax()) == token
        ):  # min_new_tokens passes over the end token
            assert int(logits.argmax()) == token
        logits = engine.forward(table(torch.tensor([token])).detach().numpy())
    assert report["onnx"]["exact"]["other_tokens"] == 0
    assert report["onnx"]["as_run"]["cosine"] > 0.999


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_s_decoder(family: str, tmp_path: Path) -> None:
    """The bundle passes `verify`, with the graph as a run loads it; the gate before compared it with every layer."""
    quantizable.save_vlm(family, tmp_path / "model")
    done = quantize_model(tmp_path / "model", tmp_path / "out", RTN)
    bundle = open_bundle(tmp_path / "out")
    verify_hashes(bundle, force=True)
    assert bundle.targets() == ("cpu",)
    assert done.report["onnx"]["exact"]["relative_error"] < 1e-4
    found = verify_bundle(tmp_path / "out", threads=1)
    assert found.ok, found.failures
    checked = {check.name for check in found.checks if check.ok}
    assert {"load llm/cpu", "parity llm/cpu cosine"} <= checked


def test_a_bundle_answers_with_its_int4_decoder(tmp_path: Path) -> None:
    from vlm_edge import AskOptions, Pipeline

    quantizable.save_vlm("llava", tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "out", ExportOptions(threads=1))
    quantize_model(tmp_path / "model", tmp_path / "out", RTN)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    answer = Pipeline.load(tmp_path / "out").ask(pixels, "what is it?", AskOptions(max_new_tokens=4))
    assert 1 <= answer.tokens.generated <= 4


@pytest.mark.parametrize("head", LM_HEADS)
@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_head_s_precision_is_what_was_asked_for(head: str, target: str, tmp_path: Path) -> None:
    quantizable.save_text(tmp_path / "model", tie_word_embeddings=True, outliers=False)
    report = quantize_model(tmp_path / "model", tmp_path / "out", replace(RTN, lm_head=head, target=target)).report
    assert report["onnx"]["lm_head"] == head
    model = graph_of(tmp_path / "out/llm" / target)
    node = next(node for node in model.graph.node if node.name == "/lm_head/MatMul")
    stored = arrays(model)
    kind = np.float16 if target == "cuda" else np.float32
    if head == "fp16":
        assert node.op_type == "Gemm"
        table = weights_of(tmp_path / "out")["model.embed_tokens.weight"].half().numpy()
        np.testing.assert_array_equal(stored["lm_head.MatMul.weight"], table.astype(kind))
        assert stored["lm_head.MatMul.weight"].dtype == kind
    else:
        bits = {attribute.name: attribute.i for attribute in node.attribute}["bits"]
        assert bits == {"int8": 8, "int4": 4}[head]
        assert stored["lm_head.MatMul.scales"].dtype == kind


def test_symmetric_weights_have_no_zero_points(tmp_path: Path) -> None:
    quantizable.save_text(tmp_path / "model", outliers=False)
    options = replace(RTN, symmetric=True, lm_head="int8")
    report = quantize_model(tmp_path / "model", tmp_path / "out", options).report["onnx"]
    assert report["exact"]["relative_error"] < 1e-4
    products = [node for node in graph_of(tmp_path / "out/llm/cpu").graph.node if node.op_type == "MatMulNBits"]
    assert len(products) == 2 * 4 + 1
    assert all(len(node.input) == 3 for node in products)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_cache_of_few_bits(kind: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache holds keys and values in codes whose scales calibration found, and a bundle's plan counts them."""
    from vlm_edge.pipeline.planning.inputs import find_model

    with monkeypatch.context() as patch:
        patch.setattr(quantizable.text_models, "with_outliers", lambda model: model)
        quantizable.save_vlm("llava", tmp_path / "model")
    options = replace(OPTIONS, calib=data, target="cpu", kv_cache_dtype=kind)
    report = quantize_model(tmp_path / "model", tmp_path / "out", options).report["onnx"]
    assert report["kv_cache"]["dtype"] == kind
    assert report["kv_cache"]["calibration_positions"] > 100
    bundle = open_bundle(tmp_path / "out")
    text = bundle.manifest.model.text
    engine = OnnxEngine(bundle.path("llm.graph", target="cpu"), text, target="cpu", threads=1, context=32)
    embeds = np.random.default_rng(0).normal(scale=0.02, size=(5, text.hidden)).astype(np.float32)
    engine.forward(embeds)
    keys, values = next(iter(engine.cached()))
    assert keys.dtype == {"int8": np.int8, "int4": np.uint8}[kind]
    assert keys.shape == values.shape == (1, text.kv_heads, 5, text.head_dim // (2 if kind == "int4" else 1))
    assert find_model(str(tmp_path / "out")).kv_cache == kind
    assert verify_bundle(tmp_path / "out", threads=1).ok
    plain = quantize_model(tmp_path / "model", tmp_path / "plain", replace(options, kv_cache_dtype="auto")).report[
        "onnx"
    ]
    assert report["kv_cache"]["relative_error"] > plain["as_run"]["relative_error"]
    # Without the option, the bundle's decoder has its float cache again.
    again = quantize_model(tmp_path / "model", tmp_path / "out", replace(options, kv_cache_dtype="auto")).bundle
    assert again is not None
    assert again.manifest.kv_cache("cpu") == ""


def test_the_cache_s_attention_is_the_builder_s(tmp_path: Path) -> None:
    """Inputs, attributes and types of the operator, against the graph that the builder makes with scales of its own."""
    quantizable.save_text(tmp_path / "model", vocab_size=104, outliers=False)
    data = quantizable.write_data(tmp_path / "data", images=False)
    quantize_model(tmp_path / "model", tmp_path / "out", replace(RTN, calib=data, kv_cache_dtype="int8"))
    scales = [[0.5] * 64] * 2
    (tmp_path / "scales.json").write_text(json.dumps({"scales": {"k_scales": scales, "v_scales": scales}}))
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(tmp_path / "model")]
    command += [
        "-o",
        str(tmp_path / "theirs"),
        "-p",
        "fp32",
        "-e",
        "cpu",
        "-c",
        str(tmp_path / "cache"),
        "--extra_options",
    ]
    options = ["exclude_embeds=true", "prune_lm_head=true", "hf_token=false", "kv_cache_quant_scheme=int8_per_channel"]
    done = subprocess.run(
        [*command, *options, f"kv_cache_scale_file={tmp_path / 'scales.json'}"], capture_output=True, check=False
    )
    assert done.returncode == 0
    found = [graph_of(tmp_path / "out/llm/cpu"), graph_of(tmp_path / "theirs")]
    nodes = [[node for node in model.graph.node if node.op_type == "GroupQueryAttention"] for model in found]
    for mine, theirs in zip(*nodes, strict=True):
        assert list(mine.input)[1:] == list(theirs.input)[1:]
        own = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in mine.attribute}
        other = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in theirs.attribute}
        assert own == other | {"causal": 1}
    cached = [{v.name: v.type.tensor_type.elem_type for v in model.graph.input if "past" in v.name} for model in found]
    assert cached[0] == cached[1]


def test_a_layer_that_is_not_the_graph_s_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of gate and up that changed places: every hash is right, the function is another."""
    quantizable.save_text(tmp_path / "model")
    real = int4_decoder.stacked
    monkeypatch.setattr(int4_decoder, "stacked", lambda parts: real(parts[::-1]))
    with pytest.raises(CheckFailed, match=r"differs from torch: .*; it begins at layers\.0 "):
        quantize_model(tmp_path / "model", tmp_path / "out", RTN)
    assert not (tmp_path / "out/llm/cpu").exists()


def test_int8_activations_that_lose_too_much_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantizable.save_text(tmp_path / "model")
    real = int4_export._as_it_runs

    def stricter(job: Any, *given: Any) -> Any:
        limits = {**parity.LIMITS, "int4": replace(parity.LIMITS["int4"], relative_error=1e-3)}
        with monkeypatch.context() as patch:
            patch.setattr(parity, "LIMITS", limits)
            return real(job, *given)

    monkeypatch.setattr(int4_export, "_as_it_runs", stricter)
    report = quantize_model(tmp_path / "model", tmp_path / "out", RTN).report["onnx"]
    assert report["activations"] == "float"
    assert report["as_run"]["relative_error"] < 1e-4 < report["int8_activations"]["relative_error"]
    levels = [
        attribute.i for node in graph_of(tmp_path / "out/llm/cpu").graph.node if node.op_type == "MatMulNBits"
        for attribute in node.attribute if attribute.name == "accuracy_level"
    ]  # fmt: skip
    assert set(levels) == {int4_decoder.EXACT}


@pytest.mark.parametrize("flags", [{"lm_head": "int8"}, {"kv_cache_dtype": "int8"}])
def test_options_of_a_decoder_without_one_are_refused(flags: dict[str, str], tmp_path: Path) -> None:
    quantizable.save_text(tmp_path / "model")
    with pytest.raises(BadInput, match="--target none writes none"):
        quantize_model(tmp_path / "model", tmp_path / "out", replace(OPTIONS, **flags))


def test_a_decoder_without_a_graph_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    quantizable.save_text(tmp_path / "model", "phi3")
    with pytest.raises(BadInput, match="phi3 decoders cannot be exported") as refused:
        quantize_model(tmp_path / "model", tmp_path / "out", RTN)
    assert "--target none" in refused.value.remedy
    assert not (tmp_path / "out").exists()


def test_a_template_that_cannot_be_repeated_is_refused() -> None:
    """A layer that reads something that only the first layer made."""
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        node("Identity", ["inputs_embeds"], ["/model/layers.0/x"], name="/model/layers.0/a"),
        node("Add", ["/model/layers.0/x", "/model/layers.0/x"], ["/model/layers.1/x"], name="/model/layers.1/a"),
        node("Identity", ["/model/layers.1/x"], ["logits"], name="/model/layers.2/final_norm_layernorm"),
    ]
    ends = [value("inputs_embeds", 1, [None])], [value("logits", 1, [None])]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", *ends))
    repeated = layered.repeat_layers(model, 4)
    assert [n.name for n in repeated.graph.node][-1] == "/model/layers.4/final_norm_layernorm"
    assert [list(n.input) for n in repeated.graph.node][3] == ["/model/layers.2/x"] * 2
    nodes[1].input[0] = "/model/layers.0/own"
    nodes[0].output.append("/model/layers.0/own")
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", *ends))
    with pytest.raises(CheckFailed, match="cannot be repeated"):
        layered.repeat_layers(model, 4)

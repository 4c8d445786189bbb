"""`quantize` from a tiny checkpoint to files that others read; and everything that it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import quantizable
from tests.quant import text_models
from tests.quantizable import OPTIONS
from tests.tiny_decoders import builder_in_process
from vlm_edge.core.bundle import open_bundle, verify_hashes
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.exporting.export import ExportOptions, export_model
from vlm_edge.pipeline.quantizing import awq_checkpoint
from vlm_edge.pipeline.quantizing.quantize import WORK, quantize_model
from vlm_edge.quant.reading import dequantized

IDS = text_models.tokens(3, 24, seed=5)


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return dict(dequantized(out / "llm/awq"))


def loaded(model: Any, weights: dict[str, torch.Tensor]) -> Any:
    """The same class with the quantized weights, read here by name."""
    other = type(model)(model.config).eval()
    missing, unexpected = other.load_state_dict(
        {name: tensor.float() for name, tensor in weights.items()}, strict=False
    )
    assert unexpected == []
    assert set(missing) <= {"lm_head.weight"}
    return other


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_a_language_model_keeps_its_function_better_than_by_plain_rounding(
    llama: tuple[Path, Any], data: Path, tmp_path: Path
) -> None:
    folder, model = llama
    errors = {}
    for method in ("awq", "rtn"):
        done = quantize_model(folder, tmp_path / method, replace(OPTIONS, calib=data, method=method))
        assert done.bundle is None
        other = loaded(model, weights_of(tmp_path / method))
        errors[method] = float((logits(other) - logits(model)).square().mean())
        assert not (tmp_path / method / WORK).exists()
    assert errors["awq"] < 0.7 * errors["rtn"], errors


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3"])
def test_every_text_architecture(kind: str, data: Path, tmp_path: Path) -> None:
    model = quantizable.save_text(tmp_path / "model", kind, num_key_value_heads=2 if kind != "phi3" else 4)
    done = quantize_model(tmp_path / "model", tmp_path / "out", replace(OPTIONS, calib=data))
    held = done.report["held_out"]
    assert held["kl"] < 0.7 * held["plain_kl"]
    assert done.report["architecture"] == kind
    plain = quantize_model(tmp_path / "model", tmp_path / "plain", replace(OPTIONS, method="rtn"))
    assert plain.report["held_out"] is None
    errors = [
        float((logits(loaded(model, weights_of(tmp_path / name))) - logits(model)).square().mean())
        for name in ("out", "plain")
    ]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize(
    "family", ["llava", "llava_next", "internvl", "idefics3", "idefics2", "paligemma", "qwen2_vl", "qwen2_5_vl"]
)
def test_every_family_s_decoder_enters_a_bundle(family: str, data: Path, tmp_path: Path) -> None:
    model = quantizable.save_vlm(family, tmp_path / "model")
    done = quantize_model(tmp_path / "model", tmp_path / "out", replace(OPTIONS, calib=data, seqlen=128))
    bundle = open_bundle(tmp_path / "out")
    verify_hashes(bundle, force=True)
    assert bundle.path("llm.embedding") == tmp_path / "out/llm/embed.safetensors"
    assert bundle.path("report.quantize.html") == tmp_path / "out/reports/quantize.html"
    assert done.report["calibration"]["with_image"] == 5
    assert done.report["calibration"]["used"] == 10
    stored = load_file(tmp_path / "out/llm/awq/model.safetensors")
    original = load_file(tmp_path / "model/model.safetensors")
    packed = {name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")}
    gone = {name.removesuffix(".weight") for name in original.keys() - stored.keys()}
    assert packed == gone
    # Only the decoder's: towers use the same names for their layers.
    tower = [name for name in stored if "vision" in name or "visual" in name]
    assert tower
    assert all(torch.equal(stored[name], original[name]) for name in tower)
    assert len(packed) == 7 * model.config.get_text_config().num_hidden_layers
    config = json.loads((tmp_path / "out/llm/awq/config.json").read_text())["quantization_config"]
    assert "lm_head" in config["modules_to_not_convert"]
    table = load_file(bundle.path("llm.embedding"))["embed"]
    assert torch.equal(table, model.get_input_embeddings().weight)


def test_a_bundle_holds_both_decoders_and_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever comes first: neither command changes what the other wrote."""
    # The builder needs a vocabulary that is no layer's width.
    monkeypatch.setattr(quantizable, "TEXT", {**quantizable.TEXT, "vocab_size": 104})
    model, options = tmp_path / "model", replace(OPTIONS, method="rtn")
    quantizable.save_vlm("llava", model)
    quantized = quantize_model(model, tmp_path / "out", options).bundle
    assert quantized is not None
    with builder_in_process():
        both = export_model(model, tmp_path / "out", ExportOptions(("llm",), threads=1))
    assert {artifact.path for artifact in both.artifacts} == {
        "llm/cpu/model.onnx", "llm/cpu/model.onnx.data", "llm/cpu/references.npz", "llm/embed.safetensors",
    }  # fmt: skip
    assert {*quantized.manifest.artifacts} < {*both.bundle.manifest.artifacts}
    again = quantize_model(model, tmp_path / "out", options).bundle
    assert again is not None
    verify_hashes(again, force=True)
    changed = {artifact.path for artifact in {*both.bundle.manifest.artifacts} - {*again.manifest.artifacts}}
    assert changed == {"reports/quantize.json", "reports/quantize.html"}  # they have times in them
    assert again.manifest.parity == both.bundle.manifest.parity


def test_symmetric_weights_have_the_middle_zero_point(llama: tuple[Path, Any], data: Path, tmp_path: Path) -> None:
    quantize_model(llama[0], tmp_path / "out", replace(OPTIONS, calib=data, symmetric=True))
    stored = load_file(tmp_path / "out/llm/awq/model.safetensors")
    zeros = [tensor for name, tensor in stored.items() if name.endswith("qzeros")]
    assert zeros
    assert all((tensor.view(torch.uint8) == 0x88).all() for tensor in zeros)


def test_weights_of_several_files(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantizable.save_vlm("llava", tmp_path / "model", max_shard_size="100KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    smaller = partial(awq_checkpoint.write_checkpoint, max_shard_bytes=60_000)
    monkeypatch.setattr(awq_checkpoint, "write_checkpoint", smaller)
    quantize_model(tmp_path / "model", tmp_path / "out", replace(OPTIONS, calib=data))
    index = json.loads((tmp_path / "out/llm/awq/model.safetensors.index.json").read_text())
    files = {path.name: load_file(path) for path in (tmp_path / "out/llm/awq").glob("*.safetensors")}
    assert len(files) > 1
    assert {name: file for file, tensors in files.items() for name in tensors} == index["weight_map"]


def test_what_is_left_out_or_cut_is_counted(tmp_path: Path) -> None:
    quantizable.save_vlm("llava", tmp_path / "model")
    lines = quantizable.write_data(tmp_path / "data", 6)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    rows += [{"text": "</s> again"}, {"text": "x" * 300}]
    quantizable.write_lines(lines, rows)
    done = quantize_model(tmp_path / "model", tmp_path / "out", replace(OPTIONS, calib=lines, seqlen=64))
    counts = done.report["calibration"]
    assert counts["read"] == 8
    assert counts["skipped_no_question"] == 1
    assert counts["cut"] == 1
    assert counts["used"] == 7 == counts["sequences"]
    assert counts["held_out"] == 1  # every fourth


def test_images_that_fill_a_sequence_are_left_out_until_none_is_left(tmp_path: Path) -> None:
    quantizable.save_vlm("llava", tmp_path / "model")
    lines = quantizable.write_data(tmp_path / "data", 4)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    quantizable.write_lines(lines, [row for row in rows if "image" in row])
    with pytest.raises(BadInput, match="0 of 2 calibration samples can be used") as refused:
        quantize_model(tmp_path / "model", tmp_path / "out", replace(OPTIONS, calib=lines, seqlen=16))
    least = int(refused.value.remedy.split()[1])
    assert quantize_model(tmp_path / "model", tmp_path / "out", replace(OPTIONS, calib=lines, seqlen=least)).bundle

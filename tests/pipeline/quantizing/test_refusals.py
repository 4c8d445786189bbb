"""Everything that `quantize` refuses: what is said, and that nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import quantizable, runnable
from tests.quantizable import OPTIONS, hashes
from vlm_edge.core.bundle import open_bundle
from vlm_edge.core.checkpoint import open_checkpoint
from vlm_edge.errors import BadInput, CheckFailed
from vlm_edge.models.text_weights import text_digest
from vlm_edge.pipeline.exporting.export import ExportOptions, export_model
from vlm_edge.pipeline.quantizing import run as quantize_run
from vlm_edge.pipeline.quantizing.quantize import gate, quantize_model

Change = Callable[[Path], None]


def of_tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Change:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def of_config(**values: Any) -> Change:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return apply


UP = "model.layers.1.mlp.up_proj.weight"
BAD_CHECKPOINTS: dict[str, tuple[Change, str]] = {
    "nan": (
        of_tensors(lambda t: t[UP].__setitem__((3, 4), float("nan"))),
        r"layer 1: mlp\.up_proj\.weight holds NaN or Inf",
    ),
    "inf": (
        of_tensors(lambda t: t[UP].__setitem__((3, 4), float("inf"))),
        r"layer 1: mlp\.up_proj\.weight holds NaN or Inf",
    ),
    "quantized": (of_config(quantization_config={"quant_method": "awq"}), "is already quantized"),
    "unknown": (of_config(model_type="mamba"), "model type 'mamba' is not supported"),
}


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_bad_checkpoints_are_refused(name: str, data: Path, tmp_path: Path) -> None:
    quantizable.save_text(tmp_path / "model")
    change, message = BAD_CHECKPOINTS[name]
    change(tmp_path / "model")
    with pytest.raises(BadInput, match=message):
        quantize_model(tmp_path / "model", tmp_path / "out", replace(OPTIONS, calib=data))
    assert not (tmp_path / "out/llm/awq").exists()


@pytest.mark.parametrize(
    ("sizes", "group", "message", "remedy"),
    [
        ({}, 128, r"self_attn\.q_proj has 64 inputs.*group size 128", "--group-size 32 works"),
        ({"intermediate_size": 128}, 128, "64 inputs", "--group-size 64 or 32 works"),
        ({"intermediate_size": 104}, 32, r"mlp\.down_proj has 104 inputs", "none of 128, 64 and 32 works"),
        ({"head_dim": 10, "num_attention_heads": 16, "num_key_value_heads": 2}, 32, "20 outputs", "eight outputs"),
    ],
)
def test_widths_that_do_not_divide_are_named(
    sizes: dict[str, Any], group: int, message: str, remedy: str, data: Path, tmp_path: Path
) -> None:
    quantizable.save_text(tmp_path / "model", **sizes)
    with pytest.raises(BadInput, match=message) as refused:
        quantize_model(tmp_path / "model", tmp_path / "out", replace(OPTIONS, calib=data, group_size=group))
    assert remedy in refused.value.remedy
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message", "remedy"),
    [
        ({"seqlen": 200}, "--seqlen 200 is longer than the model's context of 128", "use 128 or less"),
        ({"max_memory_bytes": 1 << 20}, r"--max-memory 1\.0 MiB is too small", "--max-memory "),
        ({"samples": 1}, "--samples 1 is too small", "use 2 or more"),
        ({"search_tokens": 0}, "--search-tokens 0 is too small", "use 1 or more"),
        ({"bits": 5}, "--bits 5 is not supported", "4, 3, 2"),
        ({"group_size": 48}, "--group-size 48 is not supported", "128, 64, 32"),
        ({"method": "gptq"}, "--method gptq is not supported", "awq, rtn"),
        ({"target": "tensorrt"}, "--target tensorrt is not supported", "none, cpu, cuda"),
        ({"lm_head": "int8"}, "--lm-head int8 concerns the ONNX decoder", "leave --lm-head out"),
        ({"kv_cache_dtype": "int4"}, "--kv-cache-dtype int4 concerns the ONNX decoder", "leave --kv-cache-dtype out"),
        ({"calib": Path("nowhere.jsonl")}, r"nowhere\.jsonl cannot be read", "JSON Lines file or a folder"),
    ],
)
def test_options_that_cannot_work_are_refused(
    change: dict[str, Any], message: str, remedy: str, llama: tuple[Path, Any], data: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        quantize_model(llama[0], tmp_path / "out", replace(OPTIONS, **{"calib": data, **change}))
    assert remedy in refused.value.remedy
    assert not (tmp_path / "out").exists()


def test_the_least_memory_that_is_named_does_work(llama: tuple[Path, Any], data: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, calib=data)
    with pytest.raises(BadInput, match="too small") as refused:
        quantize_model(llama[0], tmp_path / "out", replace(options, max_memory_bytes=1 << 20))
    least = int(refused.value.remedy.partition("--max-memory ")[2].partition("MiB")[0])
    done = quantize_model(llama[0], tmp_path / "out", replace(options, max_memory_bytes=(least + 64) << 20))
    assert done.report["memory"]["peak_bytes"] <= (least + 64) << 20


def test_out_of_another_model_is_refused_and_kept(llama: tuple[Path, Any], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quantize_model(llama[0], out, replace(OPTIONS, method="rtn"))
    before = hashes(out)
    quantizable.save_text(tmp_path / "qwen", "qwen2")
    quantizable.save_vlm("llava", tmp_path / "llava")
    for other in ("qwen", "llava"):
        with pytest.raises(BadInput, match=r"holds (another model|files that are no bundle's)"):
            quantize_model(tmp_path / other, out, replace(OPTIONS, calib=data))
    assert hashes(out) == before


def tuned(folder: Path, part: str) -> Path:
    """The checkpoint with one tensor of this part changed: names, shapes and config.json stay."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[next(name for name in sorted(tensors) if part in name and name.endswith("proj.weight"))] += 0.25

    shutil.copytree(folder, folder.with_name("tuned"))
    of_tensors(change)(folder.with_name("tuned"))
    return folder.with_name("tuned")


def test_a_fine_tune_s_decoder_does_not_replace_another(data: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    quantizable.save_vlm("llava", model)
    quantize_model(model, out, replace(OPTIONS, method="rtn"))
    before, source = hashes(out), open_bundle(out).manifest.source
    assert source["text"] == text_digest(open_checkpoint(model))
    with pytest.raises(BadInput, match="holds another model"):
        quantize_model(tuned(model, "language_model"), out, replace(OPTIONS, calib=data))
    assert hashes(out) == before
    again = quantize_model(model, out, replace(OPTIONS, calib=data)).bundle
    assert again is not None
    assert again.manifest.source == source


def test_a_decoder_is_not_put_beside_another_fine_tune_s_tower(tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    quantizable.save_vlm("llava", model)
    with runnable.without_graph():
        export_model(model, out, ExportOptions(threads=1))
    before = open_bundle(out).manifest
    with pytest.raises(BadInput, match="holds another model"):
        quantize_model(tuned(model, "vision_tower"), out, replace(OPTIONS, method="rtn"))
    assert open_bundle(out).manifest == before
    done = quantize_model(model, out, replace(OPTIONS, method="rtn")).bundle
    assert done is not None
    assert done.manifest.source.keys() - before.source.keys() == {"text"}
    assert done.path("vision.graph", target="cpu").is_file()
    assert done.path("llm.awq").is_file()


def test_awq_that_is_worse_than_plain_rounding_fails_and_publishes_nothing(
    llama: tuple[Path, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = quantize_run.divergence
    monkeypatch.setattr(quantize_run, "divergence", lambda *given: replace(real(*given), kl=2.0, plain_kl=1.0))
    with pytest.raises(CheckFailed, match="held-out KL 2 against 1 nats"):
        quantize_model(llama[0], tmp_path / "out", replace(OPTIONS, calib=data))
    assert not (tmp_path / "out/llm/awq").exists()


@pytest.mark.parametrize(("kl", "passes"), [(0.5, True), (1.0, True), (1.01, False), (float("nan"), False)])
def test_the_gate_lets_only_what_is_no_worse_pass(kl: float, passes: bool) -> None:
    gate(kl, 1.0, "rtn")
    if passes:
        gate(kl, 1.0, "awq")
        return
    with pytest.raises(CheckFailed, match="further from the fp32 model"):
        gate(kl, 1.0, "awq")

"""The quantized checkpoint as other programs read it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import numpy_helper
from safetensors.torch import load_file

from tests import quantizable
from vlm_edge.pipeline.quantizing.awq_checkpoint import quantized_config, skip_list
from vlm_edge.pipeline.quantizing.quantize import QuantizeOptions, quantize_model
from vlm_edge.quant.qparams import Scheme
from vlm_edge.quant.reading import dequantized

SIZES = {"attention_bias": False, "mlp_bias": False, "num_key_value_heads": 4}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """(the model, its llm/awq folder)"""
    root = tmp_path_factory.mktemp("awq")
    model = quantizable.save_text(root / "model", **SIZES)
    data = quantizable.write_data(root / "data", 6, images=False)
    quantize_model(root / "model", root / "out", QuantizeOptions(group_size=32, calib=data, seqlen=48, device="cpu"))
    return model, root / "out/llm/awq"


def test_transformers_reads_the_quantization_config(quantized: tuple[Any, Path]) -> None:
    config = transformers.AutoConfig.from_pretrained(quantized[1])
    found = transformers.AwqConfig.from_dict(dict(config.quantization_config))
    assert (found.bits, found.group_size, found.zero_point) == (4, 32, True)
    assert str(found.format).endswith("gemm") or "gemm" in str(found.format).lower()
    assert found.modules_to_not_convert == ["lm_head"]
    assert config.dtype is torch.float16


def test_tensors_have_the_shapes_and_types_of_the_format(quantized: tuple[Any, Path]) -> None:
    model, folder = quantized
    stored = load_file(folder / "model.safetensors")
    for name, linear in model.model.layers.named_modules():
        if isinstance(linear, torch.nn.Linear):
            rows, columns = linear.weight.shape
            kinds = {
                part: (stored[f"model.layers.{name}.{part}"].dtype, tuple(stored[f"model.layers.{name}.{part}"].shape))
                for part in ("qweight", "qzeros", "scales")
            }
            assert kinds == {
                "qweight": (torch.int32, (columns, rows // 8)),
                "qzeros": (torch.int32, (columns // 32, rows // 8)),
                "scales": (torch.float16, (columns // 32, rows)),
            }
    rest = {name: tensor for name, tensor in stored.items() if not name.endswith(("qweight", "qzeros", "scales"))}
    assert {tensor.dtype for tensor in rest.values()} == {torch.float16}
    kept = {name for name, _ in model.named_parameters() if "proj" not in name}
    assert set(rest) == kept


@pytest.mark.slow
def test_the_decoder_builder_of_onnxruntime_genai_reads_the_same_weights(
    quantized: tuple[Any, Path], tmp_path: Path
) -> None:
    _, folder = quantized
    command = [
        sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(folder), "-o", str(tmp_path / "onnx"), "-p", "int4",
        "-e", "cpu", "-c", str(tmp_path / "cache"), "--extra_options", "exclude_embeds=true", "int4_block_size=32",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    graph = onnx.load(tmp_path / "onnx/model.onnx")
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    ours = dict(dequantized(folder))
    for layer in range(2):
        for theirs, name in (
            ("attn/o_proj", "self_attn.o_proj"),
            ("mlp/down_proj", "mlp.down_proj"),
            ("mlp/gate_proj", "mlp.gate_proj"),
        ):
            prefix = f"model.layers.{layer}.{theirs.replace('/', '.')}.MatMulNBits"
            packed, scales, zeros = (found[f"{prefix}.{part}"] for part in ("qweight", "scales", "qzeros"))
            rows, groups, _ = packed.shape
            codes = np.stack((packed & 15, packed >> 4), -1).reshape(rows, groups, -1).astype(np.float32)
            zeros = zeros.reshape(rows, -1)
            points = np.stack((zeros & 15, zeros >> 4), -1).reshape(rows, -1)[:, :groups].astype(np.float32)
            weight = (codes - points[..., None]) * scales.reshape(rows, groups, 1).astype(np.float32)
            expected = ours[f"model.layers.{layer}.{name}.weight"].numpy()
            assert (weight.reshape(rows, -1) == expected).all(), prefix


def test_the_skip_list_has_both_forms() -> None:
    found = skip_list(("model.vision_tower", "model.multi_modal_projector"))
    assert found == [
        "vision_tower", "model.vision_tower", "multi_modal_projector", "model.multi_modal_projector", "lm_head",
    ]  # fmt: skip
    assert skip_list(()) == ["lm_head"]


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_the_config_says_what_the_file_holds(key: str) -> None:
    found = quantized_config(
        {key: "bfloat16", "hidden_size": 8}, Scheme(bits=2, group_size=64, symmetric=True), ["lm_head"]
    )
    assert json.loads(json.dumps(found)) == {
        key: "float16",
        "hidden_size": 8,
        "quantization_config": {
            "quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm",
            "modules_to_not_convert": ["lm_head"],
        },
    }  # fmt: skip

"""Runs inside AutoAWQ's own environment (setup.sh); called by compare.py, and imports nothing of this project.

python peer.py load CHECKPOINT OUT.safetensors     read with AutoAWQ's loader, write its dequantized fp16 weights
python peer.py quantize MODEL OUT CALIB.json GROUP quantize with AutoAWQ on the token ids in CALIB.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from awq import AutoAWQForCausalLM
from awq.models import base
from awq.modules.linear.gemm import WQLinear_GEMM
from awq.utils.packing_utils import dequantize_gemm
from safetensors.torch import save_file


def load(checkpoint: str, out: str) -> None:
    # On a CPU the loader insists on repacking for Intel's kernels, which hides the weights; as for a GPU it leaves them as read.
    base.get_best_device = lambda: "cuda:0"
    model = AutoAWQForCausalLM.from_quantized(checkpoint, fuse_layers=False, device_map={"": "cpu"})
    weights = {}
    for name, module in model.model.named_modules():
        if isinstance(module, WQLinear_GEMM):
            weight = dequantize_gemm(module.qweight, module.qzeros, module.scales, module.w_bit, module.group_size)
            weights[name] = weight.t().contiguous()
    save_file(weights, out)
    print(len(weights), "linear layers")


def quantize(model_path: str, out: str, calibration: str, group: str) -> None:
    samples = json.loads(Path(calibration).read_text())
    model = AutoAWQForCausalLM.from_pretrained(model_path, torch_dtype=torch.float32, device_map="cpu")
    config = {"zero_point": True, "q_group_size": int(group), "w_bit": 4, "version": "GEMM"}
    model.quantize(
        None, quant_config=config, calib_data=samples, max_calib_samples=len(samples), max_calib_seq_len=len(samples[0])
    )
    model.save_quantized(out)


if __name__ == "__main__":
    {"load": load, "quantize": quantize}[sys.argv[1]](*sys.argv[2:])

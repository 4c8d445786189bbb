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
from awq.quantize.quantizer import AwqQuantizer
from awq.utils.packing_utils import dequantize_gemm
from safetensors.torch import save_file


def keep_weights_on_cpu() -> None:
    """Have the scale search restore the weights that it tries scales on.

    AutoAWQ 0.2.9 keeps `{k: v.cpu() for k, v in module.state_dict().items()}`: copies, where the module is on a GPU, and the very
    tensors that it then multiplies in place, where it is on a CPU. There its result would be multiplied by the first scales.
    """
    search = AwqQuantizer._compute_best_scale

    def with_copies(self, x, w_mean, x_mean, module, *rest, **named):
        own = module.state_dict
        module.state_dict = lambda *args, **kwargs: {k: v.clone() for k, v in own(*args, **kwargs).items()}
        try:
            return search(self, x, w_mean, x_mean, module, *rest, **named)
        finally:
            del module.state_dict

    AwqQuantizer._compute_best_scale = with_copies


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
    keep_weights_on_cpu()
    # Qwen2 asks each layer for its kind, which the layer that AutoAWQ puts in front to catch inputs does not have.
    torch.nn.Module.attention_type = "full_attention"
    samples = json.loads(Path(calibration).read_text())
    model = AutoAWQForCausalLM.from_pretrained(model_path, torch_dtype=torch.float32, device_map="cpu")
    config = {"zero_point": True, "q_group_size": int(group), "w_bit": 4, "version": "GEMM"}
    model.quantize(
        None, quant_config=config, calib_data=samples, max_calib_samples=len(samples), max_calib_seq_len=len(samples[0])
    )
    model.save_quantized(out)


if __name__ == "__main__":
    {"load": load, "quantize": quantize}[sys.argv[1]](*sys.argv[2:])

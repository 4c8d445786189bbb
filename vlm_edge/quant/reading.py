"""Reads a checkpoint in AutoAWQ's GEMM format back into plain weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from vlm_edge.quant.packing import SUFFIXES, from_gemm


def dequantized(folder: Path, dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of every weight in a folder's safetensors files; packed linear layers come as `.weight` [out, in].

    Needs no config.json. Three tensors of a layer always stand in one file, as this package writes them.
    """
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name in sorted(names):
                module, _, part = name.rpartition(".")
                if part == "qweight":
                    own = {suffix: file.get_tensor(f"{module}.{suffix}") for suffix in SUFFIXES}
                    yield f"{module}.weight", from_gemm(own).dequantized(dtype)
                elif not (part in SUFFIXES and f"{module}.qweight" in names):
                    yield name, file.get_tensor(name)

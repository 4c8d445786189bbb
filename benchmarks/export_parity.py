"""Every family's tower and projector from a tiny random checkpoint through ONNX, against transformers.

python -m benchmarks.export_parity [FAMILY...]     a table: family, precision, worst error over image sizes and numbers of images

fp32 is the standard graph, `cpu` and `cuda` the ones with ONNX Runtime's operators; all run on ONNX Runtime's CPU provider.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from tests import tiny_vlms
from vlm_edge.backends.onnx import export
from vlm_edge.backends.onnx.parity import measure
from vlm_edge.backends.onnx.runner import OnnxEncoder

VARIANTS = (("fp32", "tensorrt"), ("fp32", "cpu"), ("fp32", "cuda"), ("fp16", "tensorrt"), ("int8", "cpu"))
SIZES = ((0, 2), (1, 3), (2, 2), (3, 1), (4, 4))
"""(seed, views or images); for Qwen-VL the seed picks grids, most of which are no multiple of the window."""


def main(families: list[str]) -> None:
    print(
        "| family | dtype | target | max error | cosine | relative error | note |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for name in families or tiny_vlms.FAMILIES:
        tiny = tiny_vlms.FAMILIES[name]
        model = tiny.model()
        traced_on = [tiny_vlms.graph_inputs(tiny.arrays(model, seed, 2)) for seed in range(8)]
        traced = export.trace(tiny_vlms.component(name, model), traced_on, component=name, ranges=True)
        given = [tiny.arrays(model, seed, count) for seed, count in SIZES]
        with torch.no_grad():
            expected = [tiny.reference(model, arrays) for arrays in given]
        stored = ir.serde.serialize_model(traced.graph)
        for dtype, target in VARIANTS:
            traced.graph = ir.serde.deserialize_model(stored)
            with tempfile.TemporaryDirectory() as folder:
                result = export.write(traced, Path(folder) / "out", dtype=dtype, target=target)
                encoder = OnnxEncoder(Path(folder) / "out/model.onnx", target="cpu", threads=1)
                outputs = [encoder.encode(tiny_vlms.graph_inputs(arrays)) for arrays in given]
            measured = [
                np.reshape(output, reference.shape) for output, reference in zip(outputs, expected, strict=True)
            ]
            parity = measure(name, dtype, measured, expected)
            note = result.scheme or ", ".join(sorted(result.custom_ops))
            errors = f"{parity.max_error:.1e} | {parity.cosine:.7f} | {parity.relative_error:.1e}"
            print(f"| {name} | {dtype} | {target} | {errors} | {note} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

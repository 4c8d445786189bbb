"""A vision graph in OpenVINO, timed on request: python encoder.py MODEL.onnx INPUT.npz THREADS f32|default

Each line on standard input is one run; its milliseconds, or with the line `output FILE` a saved output, are the answer.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import openvino


def main(graph: str, inputs: str, threads: str, precision: str) -> None:
    core = openvino.Core()
    config = {"INFERENCE_NUM_THREADS": int(threads), "PERFORMANCE_HINT": "LATENCY"}
    if precision == "f32":
        config["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = core.compile_model(core.read_model(graph), "CPU", config)
    arrays = dict(np.load(inputs))
    print("openvino", openvino.__version__, compiled.get_property("INFERENCE_PRECISION_HINT"), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        result = compiled(arrays)[0]
        spent = 1000 * (time.perf_counter() - start)
        if line.startswith("output "):
            np.save(line.split(maxsplit=1)[1].strip(), result)
        print(f"{spent:.3f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A text model as int4 OpenVINO, groups of 128 with zero points: python -m benchmarks.peers.openvino.convert CHECKPOINT FOLDER

Runs in OpenVINO's own environment (setup.sh FOLDER --decoder). Every layer is int4, embedding and lm_head int8, as optimum-intel
leaves them. Its graph has logits for every token; here the head is given the last one alone, as GenAI does when it loads a graph.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import openvino
from openvino import opset13

MODEL = "decoder.xml"
SETTINGS = {"bits": 4, "group_size": 128, "sym": False, "ratio": 1.0}


def keep_last_token(model: openvino.Model) -> None:
    """Put a slice of the last position [B, 1, D] before the product that makes the logits [B, L, V]."""
    (product,) = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul" and _makes_logits(node)]
    first, last, step, axis = (
        opset13.constant(np.array([value], np.int64)) for value in (-1, np.iinfo(np.int64).max, 1, 1)
    )
    states = product.input_value(0)
    product.input(0).replace_source_output(opset13.slice(states, first, last, step, axis).output(0))
    model.validate_nodes_and_infer_types()


def _makes_logits(node: openvino.Node) -> bool:
    readers = [reader.get_node() for reader in node.output(0).get_target_inputs()]
    return any(
        reader.get_type_name() == "Result" or (reader.get_type_name() == "Convert" and _makes_logits(reader))
        for reader in readers
    )


def main(checkpoint: str, out: str) -> None:
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig  # torch too, which no engine needs

    partial = Path(f"{out}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    exported = OVModelForCausalLM.from_pretrained(
        checkpoint, export=True, compile=False, quantization_config=OVWeightQuantizationConfig(**SETTINGS)
    )
    model = exported.model
    keep_last_token(model)
    partial.mkdir(parents=True)
    openvino.save_model(model, partial / MODEL)
    partial.rename(out)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A text model -> a decoder graph, through onnxruntime-genai's builder. Needs the `build` extra."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

from vlm_edge.core.bundle import atomic_write
from vlm_edge.errors import CheckFailed, MissingDependency

BLOCK_SIZE = 128
GRAPH = "model.onnx"


def build_decoder(text_dir: Path, out: Path, *, precision: str) -> list[str]:
    """Turn a text model's folder (config, safetensors, tokenizer) into a decoder graph with onnxruntime-genai's builder.

    precision: `int4` (round to nearest, block 128, lm_head included) or `fp32`.  Returns the names of the files written.
    Raises MissingDependency without the builder, CheckFailed when it left out or mistook the lm_head.
    """
    if importlib.util.find_spec("onnxruntime_genai") is None:
        raise MissingDependency("onnxruntime-genai is not installed", remedy="pip install 'vlm-edge[build]'")
    options = ["exclude_embeds=true", f"block_size={BLOCK_SIZE}", "prune_lm_head=true"]
    options += ["fuse_mlp_gate_up=true"] if precision == "int4" else []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(text_dir), "-o", folder]
        command += ["-p", precision, "-e", "cpu", "-c", str(Path(folder) / "cache"), "--extra_options", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise CheckFailed(
                f"onnxruntime-genai's builder failed: {last}", remedy="see whether it supports this decoder"
            )
        _check_head(Path(folder) / GRAPH)
        names = [GRAPH, f"{GRAPH}.data"]
        for name in names:
            _publish(Path(folder) / name, out / name)
    return names


def _check_head(graph: Path) -> None:
    """The logits must come from the last node's normed hidden state; the builder takes any layer with V outputs for the head."""
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    makers = {output: node for node in model.graph.node for output in node.output}
    head = makers["logits"]
    while head.op_type not in ("MatMul", "MatMulNBits", "Gemm"):
        head = makers[head.input[0]]
    source = makers[head.input[0]]
    while source.op_type in ("Gather", "Slice", "Unsqueeze", "Squeeze", "Reshape", "Cast"):
        source = makers[source.input[0]]
    if "final_norm" not in source.name:
        raise CheckFailed(
            f"the builder took {source.name} for the input of the lm_head",
            remedy="pad the vocabulary to a size that no other layer of the decoder has as its output",
        )


def _publish(source: Path, target: Path) -> None:
    with atomic_write(target) as stream, source.open("rb") as data:
        while chunk := data.read(1 << 20):
            stream.write(chunk)

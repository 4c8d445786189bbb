"""torch modules and text models -> ONNX graphs, each checked against what it came from. Needs the `build` extra."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.bundle import ParityResult, atomic_write
from vlm_edge.errors import CheckFailed, MissingDependency

OPSET = 20
BLOCK_SIZE = 128
GRAPH = "model.onnx"
RELATIVE_LIMIT = {"fp32": 1e-4, "fp16": 2e-2}
"""Largest ||export - reference|| / ||reference|| of a component, by dtype."""


def export_encoder(module: Any, pixels: NDArray[np.float32], out: Path) -> ParityResult:
    """Export a module (pixels [B, 3, S, S] -> features [B, P, Dl]) with a dynamic B and compare it on `pixels`.

    pixels: two views or more, since a batch of one is specialised to one.  Raises CheckFailed, and leaves nothing behind,
    when the graph differs or is not finite.
    """
    import torch

    from vlm_edge.backends.onnx.runner import OnnxEncoder

    sample = torch.from_numpy(pixels)
    with torch.no_grad():
        expected = module(sample).numpy()
    with tempfile.TemporaryDirectory() as folder, _quiet():
        graph = Path(folder) / GRAPH
        program = torch.onnx.export(
            module, (sample,), input_names=["pixel_values"], output_names=["image_features"], opset_version=OPSET,
            dynamic_shapes={"pixel_values": {0: torch.export.Dim("views", min=1, max=64)}}, dynamo=True,
        )  # fmt: skip
        program.save(str(graph), external_data=False)
        measured = OnnxEncoder(graph, target="cpu", threads=1).encode(pixels)
        parity = compare("vision+projector", measured, expected, RELATIVE_LIMIT["fp32"])
        if not parity.ok:
            raise CheckFailed(
                f"the exported encoder differs from torch by {parity.value:.2e}, limit {parity.limit:.0e}",
                remedy="try another opset, and report the model",
            )
        _publish(graph, out / GRAPH)
    return parity


def compare(component: str, measured: NDArray[np.float32], expected: NDArray[np.float32], limit: float) -> ParityResult:
    """Relative error in the Frobenius norm; a value that is not finite counts as an infinite error."""
    error = float(np.linalg.norm(measured - expected) / max(float(np.linalg.norm(expected)), 1e-12))
    error = error if np.isfinite(measured).all() and np.isfinite(error) else float("inf")
    return ParityResult(component, "relative_error", error, float(limit), error <= limit)


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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its steps and warns of its own future; our checks say what counts."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield

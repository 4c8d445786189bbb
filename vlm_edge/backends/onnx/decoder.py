"""A text model -> a decoder graph, through onnxruntime-genai's builder. Needs the `build` extra."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from vlm_edge.backends.onnx.attention import set_attention
from vlm_edge.backends.onnx.offset_norms import OFFSET_NORMS, restore_norms
from vlm_edge.core.specs import TextSpec
from vlm_edge.errors import BadInput, CheckFailed, MissingDependency

BLOCK_SIZE = 128
GRAPH = "model.onnx"
DATA = f"{GRAPH}.data"
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "qwen2_vl_text", "qwen2_5_vl_text")
"""Decoders whose graphs were compared with transformers'."""
PROVIDERS = {"fp32": "cpu", "fp16": "cuda", "int4": "cpu"}
"""Whom to name to the builder. Its fp16 graph for CUDA runs on a CPU as well; the one for CPUs cannot share a cache."""
_TOKENIZER: Mapping[str, Any] = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "pre_tokenizer": None,
    "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"<eos>": 0}, "unk_token": "<eos>"},
}  # fmt: skip
_TOKENIZER_CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}


def require_builder() -> None:
    """Raise MissingDependency where onnxruntime-genai is not installed."""
    if importlib.util.find_spec("onnxruntime_genai") is None:
        raise MissingDependency("onnxruntime-genai is not installed", remedy="pip install 'vlm-edge[build]'")


def build_decoder(text_dir: Path, out: Path, *, precision: str, text: TextSpec | None = None) -> list[str]:
    """Turn a text model's folder (config.json, safetensors) into a decoder graph with onnxruntime-genai's builder.

    out: becomes a folder with the graph and its weights.  precision: `int4` (round to nearest, block 128, lm_head included), `fp32`
    or `fp16`.  text: sets what the builder gets wrong, attention's windows and directions and Gemma's norms; without it the graph
    computes what it was made to.
    Disk: the graph's weights, beside `out`.  Memory: the builder holds the text model as stored, and one tensor converted.
    Returns the names of the files written.  Raises MissingDependency without the builder, BadInput where it refuses the model,
    CheckFailed when it left out or mistook the lm_head.
    """
    require_builder()
    options = ["exclude_embeds=true", f"block_size={BLOCK_SIZE}", "prune_lm_head=true"]
    # A cache as long as the window would have to be rotated by whoever runs the graph; the engine's holds everything.
    # Norms of queries and keys inside the attention are known to CUDA alone, and the graph is compared on a CPU.
    options += ["windowed_kv_cache=false", "fuse_qk_norm_gqa=false", "hf_token=false"]
    options += ["fuse_mlp_gate_up=true"] if precision == "int4" else []
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder, _with_tokenizer(text_dir) as source:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", folder]
        command += ["-p", precision, "-e", PROVIDERS[precision], "-c", str(Path(folder) / "cache")]
        done = subprocess.run(
            [*command, "--extra_options", *options],
            capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise BadInput(
                f"onnxruntime-genai's builder failed: {last}", remedy="see whether its version supports this decoder"
            )
        _finish(Path(folder), text_dir, text)
        out.mkdir(exist_ok=True)
        for name in (DATA, GRAPH):
            (Path(folder) / name).replace(out / name)
    return [GRAPH, DATA]


@contextmanager
def _with_tokenizer(text_dir: Path) -> Iterator[Path]:
    """The text model through links, beside a tokenizer of one token: the builder loads one, and the graph has nothing of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in text_dir.resolve().iterdir():
            if path.suffix in (".json", ".safetensors") and "token" not in path.name:
                (folder / path.name).symlink_to(path)
        (folder / "tokenizer.json").write_text(json.dumps(_TOKENIZER), "utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER_CONFIG), "utf-8")
        yield folder


def _finish(folder: Path, text_dir: Path, text: TextSpec | None) -> None:
    import onnx

    model = onnx.load(str(folder / GRAPH), load_external_data=False)
    _check_head(model)
    # The builder adds the commit of whatever repository its environment lies in, which would make other bytes of the same model.
    model.producer_version = metadata.version("onnxruntime-genai")
    if text is not None:
        set_attention(model, text)
        if text.architecture in OFFSET_NORMS:
            restore_norms(model, folder, text_dir, text)
    onnx.save(model, str(folder / GRAPH))


def _check_head(model: Any) -> None:
    """The logits must come from the last node's normed hidden state; the builder takes any layer with V outputs for the head."""
    makers = {output: node for node in model.graph.node for output in node.output}
    head = makers.get("logits")
    if head is None:
        raise CheckFailed("the builder left out the lm_head", remedy="check that the checkpoint has one")
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

"""A Llama checkpoint as a GGUF file: python -m benchmarks.peers.llama_cpp.convert CHECKPOINT OUT.gguf [THREADS [q4_0|f16]]

CHECKPOINT: a folder with config.json and model.safetensors of a text model. Runs in llama.cpp's own environment (setup.sh). The
file holds no tokenizer: decoding is timed from token ids. What only that environment has is imported where it is used, so that the
rest can be tested without it.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

if TYPE_CHECKING:
    from gguf import GGUFWriter

LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
OTHERS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows [heads * d, D] of a query or key projection as llama.cpp's RoPE pairs them.

    transformers rotates row i of a head with row i + d/2; llama.cpp rotates neighbours, so a pair comes to lie together.
    """
    rows, width = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, width)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, width)


def write_f16(checkpoint: Path, out: Path) -> None:
    """Matrices in F16, norms in F32; one tensor is held at a time."""
    from gguf import GGUFWriter

    config = json.loads((checkpoint / "config.json").read_text())
    if config["model_type"] != "llama" or config.get("attention_bias") or config.get("mlp_bias"):
        raise SystemExit(f"{checkpoint} is no Llama without biases")
    writer = GGUFWriter(out, "llama")
    _add_settings(writer, config)
    with safe_open(checkpoint / "model.safetensors", "numpy") as file:
        names = list(_names(config))
        for source, target in names:
            shape = file.get_slice(source).get_shape()
            dtype = _dtype(shape)
            size = int(np.prod(shape)) * dtype.itemsize
            writer.add_tensor_info(target, shape, dtype, size)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        for source, _ in names:
            tensor = file.get_tensor(source)
            tensor = tensor.astype(_dtype(tensor.shape), copy=False)
            projection = source.split(".")[-2]
            writer.write_tensor_data(interleaved(tensor, heads[projection]) if projection in heads else tensor)
    writer.close()


def quantize(source: Path, out: Path, threads: int) -> None:
    """Q4_0 as llama.cpp's own tool makes it; raises SystemExit when that fails."""
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, threads
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(settings)):
        raise SystemExit(f"llama.cpp could not quantize {source}")


def _add_settings(writer: GGUFWriter, config: dict[str, Any]) -> None:
    from gguf import LlamaFileType

    rope = config.get("rope_parameters") or config
    if rope.get("rope_type", "default") != "default":
        raise SystemExit(f"RoPE of the type {rope['rope_type']} is not converted")
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("no_vocab")


def _names(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for source, target in OTHERS.items():
        if source != "lm_head" or not config["tie_word_embeddings"]:
            yield f"{source}.weight", f"{target}.weight"
    for index in range(config["num_hidden_layers"]):
        for source, target in LAYER.items():
            yield f"model.layers.{index}.{source}.weight", f"blk.{index}.{target}.weight"


def _dtype(shape: Any) -> np.dtype:
    return np.dtype(np.float32 if len(shape) == 1 else np.float16)


def main(checkpoint: str, out: str, threads: str = "2", kind: str = "q4_0") -> None:
    target = Path(out)
    whole, partial = target.with_suffix(".f16.partial"), target.with_suffix(".partial")
    try:
        write_f16(Path(checkpoint), whole)
        if kind == "q4_0":
            quantize(whole, partial, int(threads))
        (partial if kind == "q4_0" else whole).replace(target)
    finally:
        whole.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

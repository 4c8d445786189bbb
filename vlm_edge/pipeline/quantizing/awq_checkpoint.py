"""The quantized checkpoint: finished layers and everything else of the original, in AutoAWQ's format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vlm_edge.core.bundle import atomic_write, hash_file
from vlm_edge.core.checkpoint import INDEX, SINGLE, Checkpoint
from vlm_edge.core.shards import Piece, TensorRef, copy_of, read_header, write_pieces
from vlm_edge.models.decoder_layers import StreamedDecoder
from vlm_edge.models.layouts import within
from vlm_edge.models.weights import pieces
from vlm_edge.quant.qparams import Scheme
from vlm_edge.quant.stream import half

MAX_SHARD_BYTES = 4 << 30
COMPANIONS = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
    "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
"""Files that a loader looks for beside the weights; copied where the original has them."""
_FORMAT_BITS = 4


def write_checkpoint(
    checkpoint: Checkpoint, decoder: StreamedDecoder, layers: Sequence[Path], folder: Path, scheme: Scheme,
    skipped: Sequence[str], *, max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[Path]:  # fmt: skip
    """Write weights, config.json and companions into `folder`; returns the files.

    Tensors keep the names under which the original stores them, so every loader's own renaming still fits; of a linear layer in
    the decoder, `.weight` becomes `.qweight`, `.qzeros` and `.scales`.  The rest of the language model becomes float16, what
    AutoAWQ's loaders compute in; tower and projector are copied byte for byte.
    skipped: modules that are not quantized, as `modules_to_not_convert`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _tensors(checkpoint, decoder, layers)
    files = [*_write_shards(folder, tensors, max_shard_bytes), folder / "config.json"]
    with atomic_write(folder / "config.json") as stream:
        stream.write(json.dumps(quantized_config(checkpoint.config, scheme, skipped), indent=2).encode() + b"\n")
    for name in _companions(checkpoint):
        shutil.copyfile(checkpoint.root / name, folder / name)
        files.append(folder / name)
    return files


def companion_hashes(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of each companion: tokenizer, chat template and preprocessing decide what calibration data becomes."""
    return {name: hash_file(checkpoint.root / name) for name in _companions(checkpoint)}


def _companions(checkpoint: Checkpoint) -> list[str]:
    return [name for name in COMPANIONS if (checkpoint.root / name).is_file()]


def quantized_config(config: Mapping[str, Any], scheme: Scheme, skipped: Sequence[str]) -> dict[str, Any]:
    """config.json with AutoAWQ's quantization_config.

    Bits and zero point are those of the file: codes of 2 or 3 bits stand in 4-bit words, and a symmetric scheme's zero points are
    written out, because loaders of this format know no other.
    """
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    return {
        **config,
        key: "float16",
        "quantization_config": {
            "quant_method": "awq",
            "bits": _FORMAT_BITS,
            "group_size": scheme.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": list(skipped),
        },
    }


def skip_list(parts: Sequence[str]) -> list[str]:
    """Modules that keep their weights, each by its full name and by its last part: loaders match either."""
    return [*dict.fromkeys(name for part in parts for name in (part.rpartition(".")[2], part)), "lm_head"]


def _tensors(checkpoint: Checkpoint, decoder: StreamedDecoder, layers: Sequence[Path]) -> dict[str, Piece]:
    stored = decoder.stored()
    found: dict[str, Piece] = {}
    replaced: set[str] = set()
    for index, path in enumerate(layers):
        prefix = f"{decoder.path}.layers.{index}"
        own = {name: ref for name, ref in stored.items() if within(name, (prefix,))}
        replaced.update(ref.name for ref in own.values())
        for name, ref in read_header(path).items():
            found[_stored_name(f"{prefix}.{name}", own)] = copy_of(ref)
    rest_of_llm = {ref.name for name, ref in stored.items() if within(name, (decoder.path, decoder.head_path))}
    for name, ref in checkpoint.tensors.items():
        if name not in replaced:
            found[name] = _in_half(ref) if name in rest_of_llm and _is_float(ref) else copy_of(ref)
    return found


def _is_float(ref: TensorRef) -> bool:
    return ref.dtype in ("F64", "F32", "BF16")


def _stored_name(name: str, stored: Mapping[str, TensorRef]) -> str:
    if name in stored:
        return stored[name].name
    module, _, part = name.rpartition(".")
    return f"{stored[f'{module}.weight'].name.removesuffix('.weight')}.{part}"


def _in_half(ref: TensorRef) -> Piece:
    return Piece("F16", ref.shape, partial(_halves, ref))


def _halves(ref: TensorRef) -> Iterator[memoryview]:
    for rows in pieces(ref):
        yield memoryview(half(rows, ref.name).view(-1).view(torch.uint8).numpy())


def _write_shards(folder: Path, tensors: Mapping[str, Piece], max_shard_bytes: int) -> list[Path]:
    shards: list[dict[str, Piece]] = [{}]
    size = 0
    for name in sorted(tensors):
        if shards[-1] and size + tensors[name].bytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensors[name]
        size += tensors[name].bytes
    count = len(shards)
    names = [SINGLE if count == 1 else f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    for name, shard in zip(names, shards, strict=True):
        with atomic_write(folder / name) as stream:
            write_pieces(stream, shard)
    paths = [folder / name for name in names]
    if len(shards) > 1:
        total = sum(piece.bytes for piece in tensors.values())
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in sorted(shard)}
        with atomic_write(folder / INDEX) as stream:
            stream.write(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1).encode())
        paths.append(folder / INDEX)
    return paths

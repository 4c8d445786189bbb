"""The decoder inside a vision-language checkpoint, written as a checkpoint that holds nothing else."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from vlm_edge.core.checkpoint import CONFIG, SINGLE, Checkpoint, listed
from vlm_edge.core.shards import TensorRef, same_bytes, shown, write_copies
from vlm_edge.errors import BadInput
from vlm_edge.models.layouts import COMPLETE, Layout, find_layout, path_of, within
from vlm_edge.models.text_stand_ins import stand_in
from vlm_edge.models.weights import TORCH_DTYPES, UNQUANTIZED, empty_model, on_meta

_EMBEDDING = "embed"
"""The one tensor of a bundle's embedding table."""
_TABLE_DTYPES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}


@dataclass(frozen=True)
class _Text:
    """A decoder apart from its checkpoint: config and class that load it, and where its tensors are.

    copies: by the class's names, the head left out where it is the embedding.  embedding: the tensor of the input embeddings.
    """

    config: PretrainedConfig
    model_class: type[PreTrainedModel]
    copies: Mapping[str, TensorRef]
    embedding: TensorRef


def extract_text_model(checkpoint: Checkpoint, folder: Path) -> str:
    """Write config.json and model.safetensors of the decoder alone; returns the SHA-256 of its tensors.

    A text model that exists apart is written as its own `...ForCausalLM` class loads it; one that does not (Qwen-VL's takes three
    positions a token) as a whole model with the least tower that its class allows and no tensors for it.
    Tensors keep their stored dtype and are copied a few MiB at a time: the decoder is never held, the tower never read.
    folder: must be missing or empty; it appears when it is complete, or not at all.
    Raises BadInput for a text model that nothing can stand in for, for tensors that are missing, quantized or of another shape
    than config.json says, and for a folder that cannot be written.
    """
    text = _describe(checkpoint)
    return _write(folder, text.config.to_json_string(), text.copies)


def text_digest(checkpoint: Checkpoint) -> str:
    """What extract_text_model returns, without writing anything; reads the whole decoder once."""
    return _copied(None, _describe(checkpoint).copies)


def write_embedding(checkpoint: Checkpoint, path: Path) -> str:
    """Write the input embeddings [V, D] as a bundle's table, byte for byte; returns their dtype, `fp32`, `fp16` or `bf16`.

    As stored, since no other dtype of 16 bits holds each of their values, and one that does serves decoders of every precision.
    """
    return write_table(_describe(checkpoint).embedding, path)


def write_table(embedding: TensorRef, path: Path) -> str:
    """The same for a tensor that is known to be the input embeddings."""
    if embedding.dtype not in _TABLE_DTYPES:
        raise BadInput(
            f"tensor {shown(embedding.name)} in {embedding.path} is stored as {embedding.dtype}, which no table here holds",
            remedy=UNQUANTIZED,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        write_copies(stream, {_EMBEDDING: embedding})
    return _TABLE_DTYPES[embedding.dtype]


def _describe(checkpoint: Checkpoint) -> _Text:
    if checkpoint.config.get("quantization_config"):
        raise BadInput(f"checkpoint {checkpoint.root} is quantized", remedy=UNQUANTIZED)
    whole = empty_model(checkpoint, dtype=torch.float32)
    config: PretrainedConfig = deepcopy(whole.config.get_text_config(decoder=True))
    model_class = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if model_class is None:
        model_class, config = stand_in(config, str(checkpoint.root))
    text = on_meta(model_class, config, checkpoint, dtype=torch.float32)
    copies, tied, embedding = _copies(whole, text, checkpoint)
    config.tie_word_embeddings = tied
    config.architectures = [model_class.__name__]
    config.dtype = TORCH_DTYPES[next(iter(copies.values())).dtype]
    return _Text(config, model_class, copies, embedding)


def _copies(
    whole: PreTrainedModel, text: PreTrainedModel, checkpoint: Checkpoint
) -> tuple[dict[str, TensorRef], bool, TensorRef]:
    """Tensors by the text class's names, whether its head is its embedding, and the embedding."""
    decoder, head = path_of(whole, whole.get_decoder()), path_of(whole, whole.get_output_embeddings())
    text_decoder, text_head = path_of(text, text.get_decoder()), path_of(text, text.get_output_embeddings())
    layout = find_layout(whole, checkpoint, (decoder, head))
    expected = text.state_dict()
    names = {name: f"{head}{name.removeprefix(text_head)}" for name in expected if within(name, (text_head,))}
    names |= {name: f"{decoder}{name.removeprefix(text_decoder)}" for name in expected if within(name, (text_decoder,))}
    given = layout.require(list(names.values()))
    copies = {name: _plain(layout, given[inner]) for name, inner in names.items()}
    for name, tensor in copies.items():
        if tensor.shape != tuple(expected[name].shape):
            raise BadInput(
                f"tensor {shown(tensor.name)} in {tensor.path} has shape {tensor.shape}, config.json asks for "
                f"{tuple(expected[name].shape)} ({name})",
                remedy=COMPLETE,
            )
    head_name, embedding_name = f"{text_head}.weight", f"{path_of(text, text.get_input_embeddings())}.weight"
    embedding = copies[embedding_name]
    # Only where config.json says so: two tables that are equal by chance stay two.
    tied = bool(layout.tied) and same_bytes(copies[head_name], embedding)
    if tied:
        del copies[head_name]
    return copies, tied, embedding


def _plain(layout: Layout, name: str) -> TensorRef:
    source = layout.sources[name]
    stored = source.tensors[0]
    if source.converter is not None:
        raise BadInput(
            f"checkpoint {layout.root} stores {shown(name)} in another form ({listed([stored.name], 'tensor')})",
            remedy="load it with transformers' from_pretrained and save it again",
        )
    dtype = TORCH_DTYPES.get(stored.dtype)
    if dtype is None or not dtype.is_floating_point:
        raise BadInput(
            f"tensor {shown(stored.name)} in {stored.path} is stored as {stored.dtype}: the checkpoint is quantized",
            remedy=UNQUANTIZED,
        )
    return stored


def _write(folder: Path, config: str, copies: Mapping[str, TensorRef]) -> str:
    """Fill a new folder beside `folder` and rename it: what stops half-way leaves nothing that loads. Returns the tensors' hash."""
    try:
        if folder.exists() and any(folder.iterdir()):
            raise BadInput(f"{folder} is not empty", remedy="name a new folder for the text model")
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            with (temporary / SINGLE).open("wb") as stream:
                digest = _copied(stream, copies)
            (temporary / CONFIG).write_text(config, "utf-8")
            temporary.chmod(0o755)
            if folder.exists():
                folder.rmdir()
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as cause:
        raise BadInput(
            f"{folder} cannot be written: {cause}", remedy="name a folder that can be written, on a disk with space"
        ) from cause
    return digest


def _copied(stream: BinaryIO | None, copies: Mapping[str, TensorRef]) -> str:
    """Write a safetensors file and hash it on the way: names, dtypes, shapes and data."""
    hashing = _Hashing(stream)
    write_copies(cast("BinaryIO", hashing), copies)
    return hashing.digest.hexdigest()


class _Hashing:
    """A stream to write to that keeps the SHA-256 of what went through it; without one behind it, that is all it does."""

    def __init__(self, stream: BinaryIO | None) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return len(data) if self._stream is None else self._stream.write(data)

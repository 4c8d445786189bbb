"""The decoder inside a vision-language checkpoint, written as a checkpoint of its own text-only class."""

from __future__ import annotations

import shutil
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from vlm_edge.core.checkpoint import CONFIG, SINGLE, Checkpoint, listed
from vlm_edge.core.shards import TensorRef, same_bytes, shown, write_copies
from vlm_edge.errors import BadInput
from vlm_edge.models.layouts import COMPLETE, Layout, find_layout, within
from vlm_edge.models.weights import TORCH_DTYPES, UNQUANTIZED, empty_model, on_meta


def extract_text_model(checkpoint: Checkpoint, folder: Path) -> None:
    """Write config.json and model.safetensors of the text model alone, as its own `...ForCausalLM` class loads them.

    Tensors keep their stored dtype and are copied a few MiB at a time: the decoder is never held.  The head is left out where
    it is the embedding.  folder: must be missing or empty; it appears when it is complete, or not at all.
    Raises BadInput for a text model that is no model of its own (Qwen-VL's takes three positions a token), for tensors that are
    missing, quantized or of another shape than config.json says, and for a folder that cannot be written.
    """
    if checkpoint.config.get("quantization_config"):
        raise BadInput(f"checkpoint {checkpoint.root} is quantized", remedy=UNQUANTIZED)
    whole = empty_model(checkpoint, dtype=torch.float32)
    config = deepcopy(whole.config.get_text_config(decoder=True))
    text_class = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if text_class is None:
        raise BadInput(
            f"{checkpoint.root}: the text model {config.model_type!r} does not exist apart from its vision-language model",
            remedy="export it with the whole checkpoint",
        )
    text = on_meta(text_class, config, checkpoint, dtype=torch.float32)
    copies, tied = _copies(whole, text, checkpoint)
    config.tie_word_embeddings = tied
    config.architectures = [text_class.__name__]
    config.dtype = TORCH_DTYPES[next(iter(copies.values())).dtype]
    _write(folder, config.to_json_string(), copies)


def _copies(whole: PreTrainedModel, text: PreTrainedModel, checkpoint: Checkpoint) -> tuple[dict[str, TensorRef], bool]:
    """Tensors by the text class's names, and whether its head is its embedding."""
    decoder, head = _path(whole, whole.get_decoder()), _path(whole, whole.get_output_embeddings())
    text_head = _path(text, text.get_output_embeddings())
    layout = find_layout(whole, checkpoint, (decoder, head))
    names = {}
    for name in text.state_dict():
        own = name.removeprefix(f"{text.base_model_prefix}.")
        names[name] = f"{head}{name.removeprefix(text_head)}" if within(name, (text_head,)) else f"{decoder}.{own}"
    given = layout.require(list(names.values()))
    copies = {name: _plain(layout, given[inner]) for name, inner in names.items()}
    expected = text.state_dict()
    for name, tensor in copies.items():
        if tensor.shape != tuple(expected[name].shape):
            raise BadInput(
                f"tensor {shown(tensor.name)} in {tensor.path} has shape {tensor.shape}, config.json asks for "
                f"{tuple(expected[name].shape)} ({name})",
                remedy=COMPLETE,
            )
    head_name, embedding_name = f"{text_head}.weight", f"{_path(text, text.get_input_embeddings())}.weight"
    # Only where config.json says so: two tables that are equal by chance stay two.
    tied = bool(layout.tied) and same_bytes(copies[head_name], copies[embedding_name])
    if tied:
        del copies[head_name]
    return copies, tied


def _path(model: PreTrainedModel, module: nn.Module) -> str:
    return next(str(name) for name, found in model.named_modules() if found is module)


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


def _write(folder: Path, config: str, copies: dict[str, Any]) -> None:
    """Fill a new folder beside `folder` and rename it: what stops half-way leaves nothing that loads."""
    try:
        if folder.exists() and any(folder.iterdir()):
            raise BadInput(f"{folder} is not empty", remedy="name a new folder for the text model")
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            with (temporary / SINGLE).open("wb") as stream:
                write_copies(stream, copies)
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

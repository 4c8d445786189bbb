"""A checkpoint of two layers full of ones, of a decoder's kind and widths: what a graph builder needs to draw that decoder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from vlm_edge.core.checkpoint import CONFIG, SINGLE, Checkpoint
from vlm_edge.core.shards import COPY_BYTES, Piece, write_pieces
from vlm_edge.models.text_stand_ins import stand_in
from vlm_edge.models.weights import model_config, on_meta

LAYERS = 2
INNER, VOCABULARY = 32, 13
"""Instead of the decoder's own: most of its weights, and no sizes that a graph without them needs. No other layer has as many
outputs as the vocabulary, by which builders tell the head."""
_ONE = b"\x00\x3c"
"""1 in float16. Not 0: a builder leaves out biases of zeros."""
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def write_template(checkpoint: Checkpoint, folder: Path) -> None:
    """Write config.json and model.safetensors, float16, into a new folder.

    Widths of states, heads and positions are the decoder's, so that attention and rotary positions come out right.
    Disk: two layers' attention. Raises BadInput as models.weights does, and for a decoder that nothing can stand in for.
    """
    config = _shortened(deepcopy(model_config(checkpoint).get_text_config(decoder=True)))
    model_class = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if model_class is None:
        model_class, config = stand_in(config, str(checkpoint.root))
    config.tie_word_embeddings = False
    model = on_meta(model_class, config, checkpoint, dtype=torch.float16)
    config.architectures = [model_class.__name__]
    config.dtype = torch.float16
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(config.to_json_string(), "utf-8")
    pieces = {name: _ones(tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    with (folder / SINGLE).open("wb") as stream:
        write_pieces(stream, pieces)


def _shortened(config: PretrainedConfig) -> PretrainedConfig:
    changes: Mapping[str, Any] = {"num_hidden_layers": LAYERS, "intermediate_size": INNER, "vocab_size": VOCABULARY}
    for name, value in changes.items():
        setattr(config, name, value)
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = list(kinds[:LAYERS])
    for name in _TOKENS:
        if getattr(config, name, None) is not None:
            setattr(config, name, 0)
    return config


def _ones(shape: tuple[int, ...]) -> Piece:
    count = math.prod(shape)
    return Piece("F16", shape, partial(_chunks, count))


def _chunks(count: int) -> Iterator[bytes]:
    step = COPY_BYTES // len(_ONE)
    for start in range(0, count, step):
        yield _ONE * min(step, count - start)

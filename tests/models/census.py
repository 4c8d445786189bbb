"""Parameters of transformers' own models, counted module by module: on the meta device, or by what a gradient reaches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from vlm_edge.core.specs import ModelSpec

MERGERS = ("multi_modal_projector", "connector", "merger", "image_newline")


@dataclass(frozen=True)
class Census:
    """Elements of each part of a model."""

    vision: int
    projector: int
    embedding: int
    lm_head: int
    linear: int
    other: int


def build(config: Mapping[str, Any], *, device: str = "meta") -> Any:
    """The model class that transformers has for a config.json, with nothing loaded."""
    fields = copy.deepcopy(dict(config))
    own = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device(device):
        return AutoModelForImageTextToText.from_config(own)


def census(model: Any, *, unused: Iterable[str] = (), of: Callable[[nn.Parameter], bool] = lambda _: True) -> Census:
    """Count parameters by the part of the model that they stand in.

    unused: pieces of names of tower parameters that are left out.  of: which of vision's and projector's to count.
    """
    decoder = next(
        getattr(model.model, name) for name in ("language_model", "text_model") if hasattr(model.model, name)
    )
    inside = {id(p) for p in decoder.parameters()}
    head = model.lm_head.weight
    embedding = decoder.get_input_embeddings().weight
    matrices = {id(m.weight) for m in decoder.modules() if isinstance(m, nn.Linear)}
    counts = dict.fromkeys(Census.__dataclass_fields__, 0)
    for name, parameter in model.named_parameters():
        if parameter is embedding:
            part = "embedding"
        elif parameter is head:
            part = "lm_head"
        elif id(parameter) in inside:
            part = "linear" if id(parameter) in matrices else "other"
        elif any(piece in f".{name}." for piece in unused) or not of(parameter):
            continue  # dots at both ends, so that `.layers.4.` does not mean layer 14
        else:
            part = "projector" if any(piece in name for piece in MERGERS) else "vision"
        counts[part] += parameter.numel()
    return Census(**counts)


def reached(model: Any, features: Any) -> Census:
    """Tower and projector parameters that features depend on: their gradient exists; the decoder's are all counted."""
    parts = features if isinstance(features, list | tuple) else [features]
    torch.stack([part.double().square().sum() for part in parts]).sum().backward()
    return census(model, of=lambda parameter: parameter.grad is not None)


def of_spec(spec: ModelSpec) -> Census:
    """The same numbers as a spec gives them."""
    return Census(
        spec.vision.parameters,
        spec.projector.parameters,
        spec.text.embedding_parameters,
        spec.text.lm_head_parameters,
        spec.text.linear_parameters,
        spec.text.other_parameters,
    )


TEXT = {
    "hidden_size": 96, "intermediate_size": 136, "num_hidden_layers": 5, "num_attention_heads": 6,
    "num_key_value_heads": 2, "vocab_size": 131, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
"""A small decoder of odd sizes, to be given a head_dim other than 96 / 6 = 16 where its architecture allows one."""
TOWER = {
    "hidden_size": 48, "intermediate_size": 104, "num_hidden_layers": 5, "num_attention_heads": 4, "image_size": 56,
    "patch_size": 14,
}  # fmt: skip


def changed(config: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one field, at a dotted path, set to value; `...` takes it out."""
    copied = copy.deepcopy(dict(config))
    *parents, last = path.split(".")
    place = copied
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return copied

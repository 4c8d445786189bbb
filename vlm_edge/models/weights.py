"""Parts of a transformers model filled from a checkpoint's shards, tensor by tensor; the rest stays on the meta device."""

from __future__ import annotations

import contextlib
import difflib
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vlm_edge.core.checkpoint import Checkpoint
from vlm_edge.core.shards import TensorRef, read_into, shown
from vlm_edge.errors import BadInput
from vlm_edge.models.layouts import COMPLETE, Layout, Source, find_layout, within

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""What is read as it is. Eight-bit floats and narrower need scales that only a quantizer's loader knows."""
UNQUANTIZED = "give the original checkpoint in fp32, fp16 or bf16"
PIECE_BYTES = 32 << 20
"""Of a table, as float32, that is held at a time."""
_DEPTHS = frozenset({"num_hidden_layers", "num_layers", "num_global_layers", "n_layers", "n_layer", "depth"})
_IMPLEMENTATIONS = re.compile(r"_?(attn|experts)_implementation")
"""Keys that would let a checkpoint choose code, even some from the hub: that choice is the caller's."""


def load_parts(
    checkpoint: Checkpoint, parts: Sequence[str], *, dtype: torch.dtype, attention: str | None = None
) -> PreTrainedModel:
    """The whole model in evaluation mode with only `parts` filled: submodules or parameters, by the class's own names.

    parts: e.g. ("model.vision_tower", "model.multi_modal_projector"); ("",) is everything.  dtype: of floating parameters.
    attention: transformers' name of an implementation, `sdpa` or `eager`; None leaves it to transformers.
    Memory: the parts at `dtype` and one tensor as stored.  Nothing else is read, and what is not filled stays on the meta
    device, where it cannot take part in a computation.
    Raises BadInput as `empty_model` does, and for tensors that are missing, doubled, quantized, or of another shape or number
    than config.json says.
    """
    model = empty_model(checkpoint, dtype=dtype, attention=attention)
    fill(model, find_layout(model, checkpoint, parts), parts)
    return model


def fill(model: PreTrainedModel, layout: Layout, parts: Sequence[str]) -> None:
    """Fill further parts of a model that stands on the meta device; layout: of those parts, or of more.

    Parts that hold nothing but buffers, such as rotary frequencies, may be among them. Raises BadInput as `load_parts` does.
    """
    wanted = [name for name in layout.expected if within(name, parts)]
    with torch.no_grad():
        for name, tensor in _loaded(model, layout, wanted):
            _put(model, name, tensor)
        _tie(model, layout, wanted)
        _compute_buffers(model, parts)


@contextlib.contextmanager
def filled_in_turn(model: PreTrainedModel, checkpoint: Checkpoint, parts: Sequence[str]) -> Iterator[None]:
    """Within the block, each of these submodules of a model on the meta device is read when it is called and dropped after.

    parts: paths of submodules without buffers of their own to compute, such as the layers of a decoder.
    Memory: one of them at a time, at the model's dtype.  Raises BadInput as `load_parts` does, when a part is called.
    """
    layout = find_layout(model, checkpoint, parts)
    with contextlib.ExitStack() as stack:
        for part in parts:
            module = model.get_submodule(part)
            empty = module.state_dict(keep_vars=True)
            put, drop = partial(_fill, model, layout, part), partial(_drop, model, part, empty)
            stack.callback(module.register_forward_pre_hook(lambda *_, put=put: put()).remove)
            stack.callback(module.register_forward_hook(lambda *_, drop=drop: drop()).remove)
        yield


def _fill(model: PreTrainedModel, layout: Layout, part: str) -> None:
    wanted = [name for name in layout.expected if within(name, (part,))]
    for name, tensor in _loaded(model, layout, wanted):
        _put(model, name, tensor)


def _drop(model: PreTrainedModel, part: str, empty: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in empty.items():
        path, _, leaf = f"{part}.{name}".rpartition(".")
        setattr(model.get_submodule(path), leaf, tensor)


def empty_model(
    checkpoint: Checkpoint, *, dtype: torch.dtype, attention: str | None = None, text_only: bool = False
) -> PreTrainedModel:
    """The model of the checkpoint's config.json in evaluation mode, every tensor on the meta device.

    text_only: whether a plain language model will do as well.
    Raises BadInput for a model type that is unknown or no vision-language model, and for a config that transformers refuses.
    """
    config = model_config(checkpoint)
    model_class = AutoModelForImageTextToText._model_mapping.get(type(config), None)
    if model_class is None and text_only:
        model_class = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if model_class is None:
        raise BadInput(
            f"{checkpoint.root}: model type {config.model_type!r} is no vision-language model",
            remedy="name a checkpoint that answers questions about images",
        )
    return on_meta(model_class, config, checkpoint, dtype=dtype, attention=attention)


def model_config(checkpoint: Checkpoint) -> PretrainedConfig:
    """config.json as transformers' class for its model type; raises BadInput."""
    model_type = checkpoint.config.get("model_type")
    if not isinstance(model_type, str):
        raise BadInput(f"{checkpoint.root}/config.json has no model_type", remedy=COMPLETE)
    if model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(model_type, list(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "use a checkpoint made for transformers' own classes"
        raise BadInput(f"{checkpoint.root}: unknown model type {shown(model_type)}", remedy=hint)
    try:
        _check_depth(checkpoint.config, checkpoint)
        return CONFIG_MAPPING[model_type].from_dict(_without_implementations(checkpoint.config))
    except BadInput:
        raise
    except (
        Exception
    ) as cause:  # a config may be nested too deeply to walk; transformers and its validators raise many kinds
        raise _bad_config(checkpoint, cause) from cause


def on_meta(
    model_class: type[PreTrainedModel],
    config: PretrainedConfig,
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    attention: str | None = None,
) -> PreTrainedModel:
    """An instance in evaluation mode without memory; raises BadInput when config.json does not describe one."""
    options = {} if attention is None else {"attn_implementation": attention}
    try:
        with torch.device("meta"), init.meta_device_safe_creation_ops():
            return model_class._from_config(config, dtype=dtype, **options).eval()
    except Exception as cause:  # torch and transformers raise many kinds for impossible sizes
        raise _bad_config(checkpoint, cause) from cause


def _without_implementations(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_implementations(value) if isinstance(value, Mapping) else deepcopy(value)
        for key, value in config.items()
        if not _IMPLEMENTATIONS.fullmatch(key)
    }


def _bad_config(checkpoint: Checkpoint, cause: Exception) -> BadInput:
    reason = " ".join(str(cause).split())[:200]
    return BadInput(
        f"{checkpoint.root}/config.json describes no model: {type(cause).__name__}: {reason}", remedy=COMPLETE
    )


def _check_depth(config: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Even on the meta device, and even as a config, a billion layers would fill the memory before they are found out."""
    limit = len(checkpoint.tensors)
    for key, value in config.items():
        if isinstance(value, Mapping):
            _check_depth(value, checkpoint)
        elif key in _DEPTHS and isinstance(value, int) and value > limit:
            raise BadInput(
                f"{checkpoint.root}/config.json: {key} is {value}, the checkpoint has {limit} tensors", remedy=COMPLETE
            )


def read(tensor: TensorRef, dtype: torch.dtype) -> torch.Tensor:
    """One stored tensor as `dtype`; its bytes go straight into the result where that is the stored dtype.

    Raises BadInput for data that is quantized: floating parameters stored as anything but ordinary floats.
    """
    stored = TORCH_DTYPES.get(tensor.dtype)
    if stored is None or stored.is_floating_point != dtype.is_floating_point:
        raise BadInput(
            f"tensor {shown(tensor.name)} in {tensor.path} is stored as {tensor.dtype}: the checkpoint is quantized",
            remedy=UNQUANTIZED,
        )
    data = torch.empty(tensor.shape, dtype=stored)
    if tensor.bytes:
        read_into(tensor, memoryview(data.view(-1).view(torch.uint8).numpy()))
    return data.to(dtype)


def rows_of(table: TensorRef, first: int, count: int) -> TensorRef:
    """Some rows of a stored matrix, as a tensor of their own."""
    row_bytes = table.bytes // table.shape[0]
    return replace(
        table, shape=(count, *table.shape[1:]), start=table.start + first * row_bytes, bytes=count * row_bytes
    )


def pieces(table: TensorRef) -> Iterator[torch.Tensor]:
    """A stored tensor as float32, so many rows at a time as have PIECE_BYTES."""
    rows, width = table.shape[0], math.prod(table.shape[1:])
    step = max(1, PIECE_BYTES // (4 * width))
    for first in range(0, rows, step):
        yield read(rows_of(table, first, min(step, rows - first)), torch.float32)


def _loaded(model: PreTrainedModel, layout: Layout, wanted: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The wanted parameters, or what they are tied to, one after the other."""
    users: dict[str, list[str]] = defaultdict(list)
    for name, source_name in layout.require(wanted).items():
        users[source_name].append(name)
    for source_name, names in users.items():
        source, dtype = layout.sources[source_name], layout.expected[names[0]].dtype
        _check_stored_shape(source_name, source, layout)
        for name, tensor in _materialised(model, source_name, source, dtype):
            expected = layout.expected.get(name)
            if expected is not None and tensor.shape != expected.shape:
                _refuse_shape(name, source, tuple(tensor.shape), expected)
            if name in names or name == source_name:
                yield name, tensor


def _check_stored_shape(name: str, source: Source, layout: Layout) -> None:
    """Before anything is read: a header may promise terabytes."""
    if source.converter is None and source.tensors[0].shape != tuple(layout.expected[name].shape):
        _refuse_shape(name, source, source.tensors[0].shape, layout.expected[name])


def _refuse_shape(name: str, source: Source, found: tuple[int, ...], expected: torch.Tensor) -> None:
    stored = source.tensors[0]
    raise BadInput(
        f"tensor {shown(stored.name)} in {stored.path} has shape {found}, config.json asks for {tuple(expected.shape)} "
        f"({name})",
        remedy=COMPLETE,
    )


def _materialised(
    model: PreTrainedModel, name: str, source: Source, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    if source.converter is None:
        yield name, read(source.tensors[0], dtype)
        return
    converter = deepcopy(source.converter)
    for tensor, pattern in zip(source.tensors, source.patterns, strict=True):
        converter.add_tensor(name, tensor.name, pattern, partial(read, tensor, dtype))
    for target, value in converter.convert(name, model=model, config=model.config).items():
        # A chunk of a larger tensor would keep all of it alive.
        yield target, (value[0] if isinstance(value, list) else value).clone(memory_format=torch.contiguous_format)


def _put(model: PreTrainedModel, name: str, tensor: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._parameters:
        tensor = nn.Parameter(tensor, requires_grad=False)
    tensor._is_hf_initialized = True  # transformers leaves it alone when it computes the buffers
    setattr(module, leaf, tensor)


def _tie(model: PreTrainedModel, layout: Layout, wanted: Sequence[str]) -> None:
    """One memory for tied parameters; two that the checkpoint stores with different values stay two, as in transformers."""
    for name in wanted:
        for other in sorted(layout.tied.get(name, ())):
            mine, theirs = model.get_parameter(name), model.get_parameter(other)
            if mine is not theirs and not theirs.is_meta and (mine.is_meta or torch.equal(mine, theirs)):
                path, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(path), leaf, theirs)


def _compute_buffers(model: PreTrainedModel, parts: Sequence[str]) -> None:
    """Buffers that no checkpoint stores (position ids, rotary frequencies), by the model's own initialisation."""
    names = [name for name, _ in model.named_non_persistent_buffers() if within(name, parts)]
    for name in names:
        path, _, leaf = name.rpartition(".")
        buffers = model.get_submodule(path)._buffers
        buffers[leaf] = torch.full_like(buffers[leaf], _unset(buffers[leaf].dtype), device="cpu")
    with _others_marked(model, parts):
        model.initialize_weights()
    for name in names:
        buffer = model.get_buffer(name)
        if bool((buffer.isnan() if buffer.is_floating_point() else buffer == _unset(buffer.dtype)).any()):
            raise BadInput(
                f"{type(model).__name__} does not say how to compute its buffer {name}",
                remedy="use a version of transformers whose from_pretrained fills it",
            )


def _unset(dtype: torch.dtype) -> float | int:
    """A value that no computed buffer holds."""
    return float("nan") if dtype.is_floating_point else int(torch.iinfo(dtype).min)


@contextlib.contextmanager
def _others_marked(model: PreTrainedModel, parts: Sequence[str]) -> Iterator[None]:
    """`initialize_weights` passes over modules with a mark; for the time of the block, all outside the parts have it."""
    for name, module in model.named_modules():
        module._is_hf_initialized = not within(name, parts)
    try:
        yield
    finally:
        for module in model.modules():
            del module._is_hf_initialized

"""A bundle's AWQ checkpoint: can it be the decoder that the manifest describes? Without torch, a few MiB at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.checkpoint import Checkpoint, open_checkpoint
from vlm_edge.core.shards import TensorRef, copy_of
from vlm_edge.core.specs import TextSpec
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.checking.checks import Check, not_checked

ROLE = "llm.awq"
"""Of the checkpoint's files with weights, which a bundle has if it has the checkpoint."""
NAME = "llm/awq"
_AGAIN = "quantize the model again"
_PER_WORD = 8
"""4-bit codes in an int32."""
_DTYPES = {"qweight": "I32", "qzeros": "I32", "scales": "F16"}
_FORMAT = {"quant_method": "awq", "version": "gemm", "bits": 4}
_EXPONENTS: Mapping[str, tuple[Any, int]] = {
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F32": (np.uint32, 0x7F800000),
    "F64": (np.uint64, 0x7FF0000000000000),
}
"""Of each float format its words, and the bits that are all set in NaN and Inf alone."""


def awq_checks(bundle: Bundle) -> Iterator[Check]:
    """Format, shapes against the manifest, and values; for a bundle that holds one."""
    try:
        checkpoint = open_checkpoint(bundle.path(ROLE).parent)
        group_size = _group_size(checkpoint)
    except BadInput as cause:
        yield Check(f"load {NAME}", False, note=cause.message)
        return
    yield Check(f"load {NAME}", True)
    wrong = list(_wrong_shapes(checkpoint, group_size, bundle.manifest.model.text))
    yield Check(f"shapes {NAME}", not wrong, len(wrong), 0, wrong[0] if wrong else "")
    try:
        bad = {name: count for name, ref in checkpoint.tensors.items() if (count := _bad_values(ref))}
    except BadInput as cause:
        yield Check(f"finite {NAME}", False, note=cause.message)
        return
    first = next(iter(bad), "")
    yield Check(f"finite {NAME}", not bad, sum(bad.values()), 0, f"the first in {first}" if bad else "")
    yield not_checked(f"parity {NAME}", "it is for other runtimes; its weights were compared when they were written")


def _group_size(checkpoint: Checkpoint) -> int:
    told = checkpoint.config.get("quantization_config")
    if not isinstance(told, dict) or any(told.get(key) != value for key, value in _FORMAT.items()):
        raise BadInput(f"{checkpoint.root}: config.json does not say that it is AutoAWQ's 4-bit format", remedy=_AGAIN)
    size = told.get("group_size")
    if type(size) is not int or size < 1:
        raise BadInput(f"{checkpoint.root}: config.json has the group size {size!r}", remedy=_AGAIN)
    return size


def _wrong_shapes(checkpoint: Checkpoint, group_size: int, text: TextSpec) -> Iterator[str]:
    """What is wrong with packed layers, in words: one by one, by their sizes, then by their number."""
    tensors = checkpoint.tensors
    modules = sorted({name.rpartition(".")[0] for name in tensors if name.rpartition(".")[2] in _DTYPES})
    weights = 0
    for module in modules:
        parts = {part: tensors.get(f"{module}.{part}") for part in _DTYPES}
        if wrong := _wrong_parts(module, parts, group_size):
            yield wrong
            continue
        inputs, words = parts["qweight"].shape  # type: ignore[union-attr]  # none is missing
        size = (inputs, words * _PER_WORD)
        wanted = _sizes(text).get(module.rpartition(".")[2], size)
        if size != wanted:
            yield f"{module} has {size[0]} inputs and {size[1]} outputs; the manifest's decoder has {wanted[0]} and {wanted[1]}"
        weights += size[0] * size[1]
    if text.linear_parameters and weights != text.linear_parameters:
        yield f"{weights} weights are packed; the manifest's decoder has {text.linear_parameters}"


def _wrong_parts(module: str, parts: Mapping[str, TensorRef | None], group_size: int) -> str:
    for part, dtype in _DTYPES.items():
        found = parts[part]
        if found is None:
            return f"{module} has no {part}"
        if found.dtype != dtype or len(found.shape) != 2:
            return f"{module}.{part} is {found.dtype} of shape {found.shape}"
    shapes = {part: found.shape for part, found in parts.items() if found is not None}
    inputs, words = shapes["qweight"]
    groups = inputs // group_size
    if inputs % group_size or shapes["qzeros"] != (groups, words) or shapes["scales"] != (groups, words * _PER_WORD):
        return f"{module} has parts of shapes {', '.join(map(str, shapes.values()))}, which in groups of {group_size} do not fit"
    return ""


def _sizes(text: TextSpec) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of the linear layers that most architectures have."""
    queries, keys = text.heads * text.head_dim, text.kv_heads * text.head_dim
    return {
        "q_proj": (text.hidden, queries),
        "k_proj": (text.hidden, keys),
        "v_proj": (text.hidden, keys),
        "o_proj": (queries, text.hidden),
        "gate_proj": (text.hidden, text.intermediate),
        "up_proj": (text.hidden, text.intermediate),
        "down_proj": (text.intermediate, text.hidden),
    }


def _bad_values(ref: TensorRef) -> int:
    """How many are NaN or Inf, and of scales how many are not above 0."""
    if ref.dtype not in _EXPONENTS:
        return 0
    word, exponent = _EXPONENTS[ref.dtype]
    is_scale = ref.name.endswith(".scales") and ref.dtype == "F16"
    bad = 0
    for chunk in copy_of(ref).chunks():
        words: NDArray[Any] = np.frombuffer(chunk, word)
        wrong = (words & word(exponent)) == word(exponent)
        if is_scale:
            wrong |= words.view(np.float16) <= 0
        bad += int(np.count_nonzero(wrong))
    return bad

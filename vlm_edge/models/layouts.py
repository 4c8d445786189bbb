"""Which of a checkpoint's tensors become which parameters of a transformers class.

transformers 4 and 5 name them differently; transformers itself is asked how one becomes the other.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from vlm_edge.core.checkpoint import Checkpoint, listed
from vlm_edge.core.shards import TensorRef, shown
from vlm_edge.errors import BadInput

_RECOMPUTED = re.compile(r"(^|\.)(position_ids|inv_freq)$")
"""Buffers that old checkpoints store and today's classes compute."""
_NUMBER = re.compile(r"\d+")
COMPLETE = "check config.json against the weights, or download the checkpoint again"


@dataclass(frozen=True)
class Source:
    """Where a parameter comes from: one tensor as it is, or several that `converter` makes into one or more.

    patterns: for each tensor, which of the converter's inputs it is.
    """

    tensors: tuple[TensorRef, ...]
    converter: WeightConverter | None = None
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """A checkpoint in the names of a class, for the parts that were asked for.

    expected: all parameters and stored buffers of the class, on the meta device.  sources: by the class's name.
    tied: a tied parameter's other names.
    """

    expected: Mapping[str, torch.Tensor]
    sources: Mapping[str, Source]
    tied: Mapping[str, frozenset[str]]
    root: str

    def require(self, names: Sequence[str]) -> dict[str, str]:
        """For each name the source that gives it or a parameter tied to it; raises BadInput with the first five missing."""
        produced = self._produced()
        given = {name: self._source_of(name, produced) for name in names}
        if missing := [name for name, source in given.items() if source is None]:
            raise BadInput(
                f"checkpoint {self.root} lacks {listed(missing, 'tensor')}",
                remedy="download all its shards; if none is missing, config.json describes another model",
            )
        return {name: source for name, source in given.items() if source is not None}

    def _source_of(self, name: str, produced: Mapping[str, str]) -> str | None:
        names = (name, *sorted(self.tied.get(name, ())))
        return next((produced[other] for other in names if other in produced), None)

    def _produced(self) -> dict[str, str]:
        """Parameter -> source. A converter that splits a tensor gives several parameters, named after its targets."""
        names = {}
        for name, source in self.sources.items():
            targets: Sequence[str] = source.converter.target_patterns if source.converter else ()
            names[name] = name
            for target in targets:
                names[name.replace(targets[0], target)] = name
        return names


def within(name: str, parts: Sequence[str]) -> bool:
    """Whether a parameter or module lies under one of `parts` or is one; the part "" holds everything."""
    return any(part in ("", name) or name.startswith(f"{part}.") for part in parts)


def path_of(model: nn.Module, module: nn.Module) -> str:
    """A module's name inside a model."""
    return next(str(name) for name, found in model.named_modules() if found is module)


def find_layout(model: PreTrainedModel, checkpoint: Checkpoint, parts: Sequence[str]) -> Layout:
    """The checkpoint's tensors for `parts` of a model that stands on the meta device.

    Raises BadInput when two tensors claim one name, or when config.json has fewer layers than the weights; ValueError for a part
    that the class does not have.
    """
    expected = model.state_dict(keep_vars=True)
    if astray := [part for part in parts if not any(within(name, (part,)) for name in expected)]:
        raise ValueError(f"{type(model).__name__} has no part {astray[0]!r}")
    tied = _tied_names(model)
    # A tied parameter may be stored under its other name, which can lie outside the parts.
    others = {other for name, names in tied.items() if within(name, parts) for other in names}
    sources = {
        name: source
        for name, source in _sources(model, checkpoint, expected).items()
        if within(name, parts) or name in others
    }
    layout = Layout(expected, sources, tied, str(checkpoint.root))
    _refuse_doubles(layout)
    _refuse_surplus(model, layout)
    return layout


def _sources(model: PreTrainedModel, checkpoint: Checkpoint, expected: Mapping[str, torch.Tensor]) -> dict[str, Source]:
    mapping = get_model_conversion_mapping(model)
    renamings = [step for step in mapping if isinstance(step, WeightRenaming)]
    converters = [step for step in mapping if isinstance(step, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    found: dict[str, list[tuple[TensorRef, str]]] = defaultdict(list)
    for stored in checkpoint.tensors.values():
        name, pattern = rename_source_key(stored.name, renamings, converters, model.base_model_prefix, expected)
        if name not in expected and stored.name in expected:  # the mapping was not meant for it
            name, pattern = stored.name, None
        found[name].append((stored, pattern or ""))
    return {
        name: Source(tuple(ref for ref, _ in pairs), by_pattern.get(pairs[0][1]), tuple(key for _, key in pairs))
        for name, pairs in found.items()
    }


def _tied_names(model: PreTrainedModel) -> dict[str, frozenset[str]]:
    groups: dict[str, set[str]] = defaultdict(set)
    for target, source in model.all_tied_weights_keys.items():
        groups[source] |= {source, target}
    return {name: frozenset(names - {name}) for names in groups.values() for name in names}


def _refuse_doubles(layout: Layout) -> None:
    for name, source in layout.sources.items():
        if source.converter is None and len(source.tensors) > 1:
            stored = listed([tensor.name for tensor in source.tensors], "tensor")
            raise BadInput(
                f"checkpoint {layout.root} stores {shown(name)} as {stored}",
                remedy="keep one of them, or download the checkpoint again",
            )


def _refuse_surplus(model: PreTrainedModel, layout: Layout) -> None:
    """Refuse a tensor that differs from an expected one in a number only: config.json has fewer layers than the weights.

    Other tensors that the class has no use for are harmless: buffers of old versions, a head that is switched off.
    """
    kinds = {_NUMBER.sub("#", name) for name in layout.expected}
    ignored = [_RECOMPUTED, *(re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ())]
    surplus = [
        name
        for name, source in layout.sources.items()
        if name not in layout.expected
        and source.converter is None
        and _NUMBER.sub("#", name) in kinds
        and not any(pattern.search(name) for pattern in ignored)
    ]
    if surplus:
        raise BadInput(
            f"{layout.root}/config.json has no place for {listed(surplus, 'tensor')}: it describes fewer layers",
            remedy=COMPLETE,
        )

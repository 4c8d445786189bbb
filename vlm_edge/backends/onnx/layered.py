"""A decoder graph of two layers continued to any number of them: builders need the weights of every layer, a template does not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING

from vlm_edge.backends.onnx.unexpected_graph import unexpected_graph

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, ValueInfoProto

TEMPLATE_LAYERS = 2
"""The first reads the embeddings; the second reads a layer, as all that follow do."""
_NUMBERED = re.compile(r"\b(layers|past_key_values|present)\.(\d+)(?=[./])")
_REPEATED = 1


def numbered(name: str) -> bool:
    """Whether a name belongs to one layer, or to what follows the last."""
    return _NUMBERED.search(name) is not None


def repeat_layers(template: ModelProto, layers: int) -> ModelProto:
    """The graph with `layers` copies of its layers, the second copied as often as needed.

    Nodes, inputs and outputs are repeated; initializers that belong to a layer are left out, since the graph that comes out reads
    others.  Raises CheckFailed for a template in which a layer reads more than the one before it.
    """
    from onnx import ModelProto

    head, own, tail = _parts(template)
    model = ModelProto()
    model.CopyFrom(template)
    graph = model.graph
    del graph.node[:], graph.value_info[:], graph.input[:], graph.output[:], graph.initializer[:]
    graph.node.extend(head)
    for index in range(layers):
        which = min(index, _REPEATED)
        graph.node.extend(_renamed(node, _shifted(which, index)) for node in own[which])
    graph.node.extend(_renamed(node, _shifted(TEMPLATE_LAYERS, layers)) for node in tail)
    graph.input.extend(_values(template.graph.input, layers))
    graph.output.extend(_values(template.graph.output, layers))
    graph.initializer.extend(tensor for tensor in template.graph.initializer if not numbered(tensor.name))
    _check_order(model)
    return model


def _parts(template: ModelProto) -> tuple[list[NodeProto], dict[int, list[NodeProto]], list[NodeProto]]:
    """Nodes before the layers, those of each layer, and those behind: a node without a number goes where its inputs are."""
    head: list[NodeProto] = []
    tail: list[NodeProto] = []
    own: dict[int, list[NodeProto]] = {index: [] for index in range(TEMPLATE_LAYERS)}
    inside: set[str] = set()
    for node in template.graph.node:
        found = _NUMBERED.search(node.name)
        layer = int(found[2]) if found else None
        if layer in own:
            own[layer].append(node)
            inside.update(node.output)
        elif layer is not None or inside.intersection(node.input):
            tail.append(node)
            inside.update(node.output)
        else:
            head.append(node)
    return head, own, tail


def _shifted(old: int, new: int) -> Mapping[int, int]:
    return {number: number - old + new for number in range(TEMPLATE_LAYERS + 1)}


def renumbered(name: str, numbers: Mapping[int, int]) -> str:
    """A name with its layer's number replaced."""
    return _NUMBERED.sub(lambda found: f"{found[1]}.{numbers[int(found[2])]}", name)


def _renamed(node: NodeProto, numbers: Mapping[int, int]) -> NodeProto:
    copy = deepcopy(node)
    copy.name = renumbered(node.name, numbers)
    copy.input[:] = [renumbered(name, numbers) for name in node.input]
    copy.output[:] = [renumbered(name, numbers) for name in node.output]
    return copy


def _values(values: list[ValueInfoProto], layers: int) -> list[ValueInfoProto]:
    """Inputs or outputs, those of the first layer once for every layer, those of others dropped."""
    found = []
    for value in values:
        match = _NUMBERED.search(value.name)
        if match is None:
            found.append(value)
        elif int(match[2]) == 0:
            for index in range(layers):
                copy = deepcopy(value)
                copy.name = renumbered(value.name, {0: index})
                found.append(copy)
    return found


def _check_order(model: ModelProto) -> None:
    """Every value that a node reads was made before it, unless it is the weight of a layer."""
    known = {"", *(value.name for value in model.graph.input), *(tensor.name for tensor in model.graph.initializer)}
    for node in model.graph.node:
        for name in node.input:
            if name not in known and ("/" in name or not numbered(name)):
                raise unexpected_graph(
                    f"the decoder's graph cannot be repeated: {node.name} reads {name}, which nothing made before it"
                )
        known.update(node.output)
    if missing := [value.name for value in model.graph.output if value.name not in known]:
        raise unexpected_graph(f"the decoder's graph cannot be repeated: nothing makes {missing[0]}")

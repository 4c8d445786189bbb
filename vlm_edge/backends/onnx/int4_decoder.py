"""A decoder of 4-bit weights: the builder's graph from a template of two layers, weights packed and written layer by layer.

onnxruntime-genai's builder takes an AWQ checkpoint too, but holds all of it several times over, cannot stack gate and up there,
and rounds the lm_head whatever it is told. Needs the `build` extra.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vlm_edge.backends.onnx.attention import set_attention
from vlm_edge.backends.onnx.decoder import DATA, GRAPH
from vlm_edge.backends.onnx.external_data import ExternalData
from vlm_edge.backends.onnx.layered import numbered, repeat_layers
from vlm_edge.backends.onnx.offset_norms import OFFSET_NORMS
from vlm_edge.backends.onnx.unexpected_graph import unexpected_graph
from vlm_edge.core.bundle import atomic_write
from vlm_edge.core.specs import TextSpec
from vlm_edge.errors import CheckFailed
from vlm_edge.quant.nbits import Blocks, stacked, to_blocks, zero_points
from vlm_edge.quant.qparams import Quantized, Scheme, quantize

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

EXACT, INT8_ACTIVATIONS = 1, 4
"""MatMulNBits' accuracy_level: multiply floats, or round each block of activations to int8 first, which is much quicker."""
_WEIGHT = re.compile(r"model\.layers\.(\d+)\.(attn|mlp)\.(\w+)\.MatMul\.weight")
_OTHER = re.compile(r"model\.layers\.(\d+)\.(?:(attn|mlp)\.)?(\w+?)(?:\.(Add\.bias|layernorm\.weight)|\.weight)")
_MODULES = {"attn": "self_attn.", "mlp": "mlp.", None: ""}
_PACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}
_GATE_UP = ("gate_proj", "up_proj")
"""Two products of one input and one width, which are one product in half the calls."""
_HEAD = "lm_head.MatMul"
_ZERO_POINTS_AT = 3
"""The input of MatMulNBits that may be left out."""
Floats = NDArray[np.floating[Any]]


class DecoderWeights(Protocol):
    """Where a decoder's weights come from; names are those of transformers' decoder layer, relative to it."""

    def layer(self, index: int) -> tuple[Mapping[str, Quantized], Mapping[str, torch.Tensor]]:
        """Linear layers by module, and every other parameter by name, of one layer."""
        ...

    def norm(self) -> torch.Tensor:
        """The final norm's weight [D] as stored, float32."""
        ...

    def head(self) -> Iterator[torch.Tensor]:
        """The output table [V, D] in pieces of some rows, float32."""
        ...


@dataclass(frozen=True)
class Int4Settings:
    """scheme: of the head's rounding; block size too.  head: one of recipe.LM_HEADS.  accuracy_level: EXACT or INT8_ACTIVATIONS."""

    scheme: Scheme
    head: str = "fp16"
    accuracy_level: int = INT8_ACTIVATIONS


@dataclass(frozen=True)
class _Linear:
    """A MatMulNBits node, the name that its tensors begin with, and the modules whose weights it stacks."""

    node: NodeProto
    name: str
    modules: tuple[str, ...]


def write_decoder(template: Path, text: TextSpec, weights: DecoderWeights, out: Path, settings: Int4Settings) -> None:
    """Write `out`/model.onnx and its data, for the decoder `text` out of the builder's float graph of two layers in `template`.

    Types of inputs and scales are the template's. Memory: one layer, packed.  Raises CheckFailed for a template whose weights are
    not those of the layers, and whatever `weights` raises; files appear when they are complete.
    """
    import onnx

    source = onnx.load(str(template / GRAPH), load_external_data=False)
    model = repeat_layers(source, text.layers)
    set_attention(model, text)
    linears = _quantize_matmuls(model, settings)
    kept = {tensor.name: onnx.numpy_helper.to_array(tensor, str(template)) for tensor in model.graph.initializer}
    del model.graph.initializer[:]
    dtype = _float_type(model)
    with atomic_write(out / DATA) as stream:
        data = ExternalData(stream, DATA)
        for index in range(text.layers):
            quantized, others = weights.layer(index)
            _write_layer(data, model, index, linears[index], quantized, others, text, dtype)
            del quantized, others
        _write_norm(data, text, weights.norm(), dtype)
        for name, values in kept.items():
            if name != f"{_HEAD}.weight":
                data.add(name, values)
        _write_head(data, model, text, weights.head(), settings, dtype)
    model.graph.initializer.extend(data.tensors)
    _check_complete(model)
    with atomic_write(out / GRAPH) as stream:
        stream.write(model.SerializeToString())


def set_accuracy(graph: Path, level: int) -> None:
    """Have every product of a written decoder computed at another accuracy_level; its data stay as they are."""
    import onnx
    from onnx import helper

    model = onnx.load(str(graph), load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            kept = [attribute for attribute in node.attribute if attribute.name != "accuracy_level"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("accuracy_level", level)])
    with atomic_write(graph) as stream:
        stream.write(model.SerializeToString())


def _float_type(model: ModelProto) -> Any:
    from onnx import helper

    embeds = next(value for value in model.graph.input if value.name == "inputs_embeds")
    return helper.tensor_dtype_to_np_dtype(embeds.type.tensor_type.elem_type)


def _quantize_matmuls(model: ModelProto, settings: Int4Settings) -> dict[int, list[_Linear]]:
    """Every layer's products with a weight become MatMulNBits, gate and up a single one; sizes are set with the weights."""
    groups: dict[tuple[int, str], list[NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and (found := _WEIGHT.fullmatch(node.input[1])):
            apart = "" if found[3] in _GATE_UP else node.name
            groups.setdefault((int(found[1]), apart), []).append(node)
    linears: dict[int, list[_Linear]] = {}
    replaced: dict[str, list[NodeProto]] = {}
    for (layer, _), nodes in groups.items():
        linear, made = _stacked_nodes(nodes, settings)
        linears.setdefault(layer, []).append(linear)
        replaced[nodes[0].name] = made
        replaced.update((node.name, []) for node in nodes[1:])
    nodes = [new for node in model.graph.node for new in replaced.get(node.name, [node])]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    own = {node.name: node for node in model.graph.node}
    return {
        layer: [_Linear(own[linear.node.name], linear.name, linear.modules) for linear in found]
        for layer, found in linears.items()
    }


def _stacked_nodes(nodes: Sequence[NodeProto], settings: Int4Settings) -> tuple[_Linear, list[NodeProto]]:
    from onnx import helper

    parts = [match for node in nodes if (match := _WEIGHT.fullmatch(node.input[1]))]
    names = tuple(part[3] for part in parts)
    together = names[0] if len(names) == 1 else "gate_up_proj"
    name = f"model.layers.{parts[0][1]}.{parts[0][2]}.{together}.MatMulNBits"
    path = f"{nodes[0].name.rpartition('/')[0].rpartition('/')[0]}/{together}"
    output = nodes[0].output[0] if len(nodes) == 1 else f"{path}/MatMulNBits/output_0"
    product = _nbits_node(f"{path}/MatMulNBits", nodes[0].input[0], name, output, 4, settings)
    made = [product]
    if len(nodes) > 1:
        made.append(
            helper.make_node(
                "Split", [output], [node.output[0] for node in nodes], name=f"{path}/Split", axis=-1, num_outputs=len(nodes)
            )
        )  # fmt: skip
    modules = tuple(f"{_MODULES[parts[0][2]]}{module}" for each in names for module in _PACKED.get(each, (each,)))
    return _Linear(product, name, modules), made


def _nbits_node(path: str, source: str, name: str, output: str, bits: int, settings: Int4Settings) -> NodeProto:
    from onnx import helper

    return helper.make_node(
        "MatMulNBits", [source, f"{name}.qweight", f"{name}.scales", f"{name}.qzeros"], [output], name=path,
        domain="com.microsoft", bits=bits, block_size=settings.scheme.group_size, accuracy_level=settings.accuracy_level,
    )  # fmt: skip


def _set_sizes(node: NodeProto, blocks: Blocks) -> None:
    from onnx import helper

    node.attribute.extend([helper.make_attribute("K", blocks.inputs), helper.make_attribute("N", blocks.outputs)])


def _write_layer(
    data: ExternalData, model: ModelProto, index: int, linears: Sequence[_Linear], quantized: Mapping[str, Quantized],
    others: Mapping[str, torch.Tensor], text: TextSpec, dtype: Any,
) -> None:  # fmt: skip
    unused = {*quantized, *others}
    for linear in linears:
        if not unused.issuperset(linear.modules):
            raise _unlike(index, f"no {min({*linear.modules} - unused)}")
        unused.difference_update(linear.modules)
        blocks = stacked([to_blocks(quantized[module]) for module in linear.modules])
        _set_sizes(linear.node, blocks)
        if blocks.zero_points is None:
            del linear.node.input[_ZERO_POINTS_AT:]
        _write_blocks(data, linear.name, blocks, dtype)
    for name in _others_of(model, index):
        sources = _sources(name)
        if not unused.issuperset(sources):
            raise _unlike(index, f"no {min({*sources} - unused)}")
        unused.difference_update(sources)
        values = torch.cat([others[source].float() for source in sources])
        offset = text.architecture in OFFSET_NORMS and sources[0].endswith("norm.weight")
        data.add(name, (values + 1 if offset else values).numpy().astype(dtype))
    if unused:
        raise _unlike(index, f"{min(unused)}, which the graph does not read")


def _others_of(model: ModelProto, index: int) -> list[str]:
    """Names of a layer's initializers that are not packed weights, in the order in which nodes read them."""
    prefix = f"model.layers.{index}."
    read = [name for node in model.graph.node for name in node.input if name.startswith(prefix)]
    return [name for name in dict.fromkeys(read) if ".MatMulNBits." not in name]


def _sources(name: str) -> tuple[str, ...]:
    """The layer's parameters that an initializer of the builder holds, one after the other."""
    found = _OTHER.fullmatch(name)
    if found is None:
        raise unexpected_graph(f"the decoder's graph reads {name}, which is no part of a layer")
    leaf = "bias" if found[4] == "Add.bias" else "weight"
    return tuple(f"{_MODULES[found[2]]}{part}.{leaf}" for part in _PACKED.get(found[3], (found[3],)))


def _unlike(index: int, what: str) -> CheckFailed:
    return unexpected_graph(f"layer {index} of the decoder has {what}")


def _write_blocks(data: ExternalData, name: str, blocks: Blocks, dtype: Any) -> None:
    data.add(f"{name}.qweight", blocks.weight.numpy())
    data.add(f"{name}.scales", blocks.scales.numpy().astype(dtype))
    if blocks.zero_points is not None:
        data.add(f"{name}.qzeros", blocks.zero_points.numpy())


def _write_norm(data: ExternalData, text: TextSpec, norm: torch.Tensor, dtype: Any) -> None:
    values = norm.float() + 1 if text.architecture in OFFSET_NORMS else norm.float()
    data.add(f"model.layers.{text.layers}.final_norm_layernorm.weight", values.numpy().astype(dtype))


def _write_head(
    data: ExternalData, model: ModelProto, text: TextSpec, rows: Iterator[torch.Tensor], settings: Int4Settings, dtype: Any
) -> None:  # fmt: skip
    logits = next(value for value in model.graph.output if value.name == "logits")
    logits.type.tensor_type.shape.dim[-1].dim_value = text.vocab
    product = next(node for node in model.graph.node if f"{_HEAD}.weight" in node.input)
    if settings.head == "fp16":
        # In the graph's own type: a cast of the weights would only be folded when the graph is loaded.
        _float_head(model, product)
        data.begin(f"{_HEAD}.weight", dtype, (text.vocab, text.hidden))
        for part in rows:
            data.write(part.half().numpy().astype(dtype))
    else:
        _packed_head(data, product, text, rows, settings, dtype)
    if not data.whole():
        raise unexpected_graph(f"the lm_head has fewer rows than the vocabulary's {text.vocab}")


def _packed_head(
    data: ExternalData,
    product: NodeProto,
    text: TextSpec,
    rows: Iterator[torch.Tensor],
    settings: Int4Settings,
    dtype: Any,
) -> None:
    from onnx import helper

    scheme = head_scheme(settings)
    node = _nbits_node(product.name, product.input[0], _HEAD, product.output[0], scheme.bits, settings)
    sizes = {"K": text.hidden, "N": text.vocab}
    node.attribute.extend(helper.make_attribute(key, value) for key, value in sizes.items())
    if scheme.symmetric:
        del node.input[_ZERO_POINTS_AT:]
    product.CopyFrom(node)
    groups = text.hidden // scheme.group_size
    data.begin(f"{_HEAD}.qweight", np.uint8, (text.vocab, groups, scheme.group_size * scheme.bits // 8))
    scales, zeros = [], []
    for part in rows:
        blocks = to_blocks(quantize(part, scheme), scheme.bits)
        data.write(blocks.weight.numpy())
        scales.append(blocks.scales)
        zeros.append(zero_points(blocks))
    complete = data.whole()
    data.add(f"{_HEAD}.scales", torch.cat(scales).numpy().astype(dtype))
    if not scheme.symmetric:
        data.add(f"{_HEAD}.qzeros", torch.cat(zeros).numpy())
    if not complete:
        raise unexpected_graph(f"the lm_head has fewer rows than the vocabulary's {text.vocab}")


def head_scheme(settings: Int4Settings) -> Scheme:
    """How the head is rounded: to nearest, in blocks of the decoder's size; at 8 bits a zero point of its own gains nothing."""
    if settings.head == "int8":
        return Scheme(8, settings.scheme.group_size, symmetric=True)
    return Scheme(4, settings.scheme.group_size)


def round_head(rows: torch.Tensor, settings: Int4Settings) -> torch.Tensor:
    """Rows of the output table [T, D] as the graph computes with them, float32."""
    if settings.head == "fp16":
        return rows.half().float()
    return quantize(rows, head_scheme(settings)).dequantized()


def _float_head(model: ModelProto, product: NodeProto) -> None:
    """The head as a Gemm that reads the table as checkpoints store it, [V, D].

    The builder takes the last token's states [B, D], gives them an axis [B, 1, D] and multiplies; here the axis comes after.
    """
    from onnx import helper

    nodes = list(model.graph.node)
    axis = next(node for node in nodes if product.input[0] in node.output)
    if axis.op_type != "Unsqueeze":
        raise unexpected_graph(f"the lm_head reads {axis.name}, no Unsqueeze")
    flat = "/lm_head/Gemm/output_0"
    made = [
        helper.make_node("Gemm", [axis.input[0], f"{_HEAD}.weight"], [flat], name="/lm_head/MatMul", transB=1),
        helper.make_node("Unsqueeze", [flat, axis.input[1]], [product.output[0]], name="/lm_head/Unsqueeze"),
    ]
    place = nodes.index(product)
    kept = [node for node in nodes[:place] if node is not axis]
    del model.graph.node[:]
    model.graph.node.extend([*kept, *made, *nodes[place + 1 :]])


def _check_complete(model: ModelProto) -> None:
    stored = {tensor.name for tensor in model.graph.initializer}
    known = stored | {value.name for value in model.graph.input}
    made = {name for node in model.graph.node for name in node.output}
    read = {name for node in model.graph.node for name in node.input if name}
    if missing := read - known - made:
        raise unexpected_graph(f"nothing was written for {min(missing)}")
    if astray := {name for name in stored - read if numbered(name)}:
        raise unexpected_graph(f"{min(astray)} was written and is not read")

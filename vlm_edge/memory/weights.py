"""Bytes of weights, tensor by tensor where their shapes matter. Integers in, integers out."""

from __future__ import annotations

from vlm_edge.core.specs import ProjectorSpec, TextSpec, VisionSpec
from vlm_edge.errors import BadInput
from vlm_edge.memory.request import BITS, GROUP_SIZES

SCALE_BYTES = 2
VISION_BLOCK = 32
"""Weights that share a scale where the vision encoder has 8 bits: ONNX Runtime's MatMulNBits as `export` writes it."""


def grouped_bytes(inputs: int, outputs: int, *, bits: int, group_size: int, scale_bytes: int = SCALE_BYTES) -> int:
    """A matrix of `bits`-bit weights with a scale and a `bits`-bit zero point for each group of inputs.

    Source: AutoAWQ's GEMM layout, qweight [in, out * bits / 32] int32, qzeros [in / g, out * bits / 32] int32, scales
    [in / g, out] fp16; MatMulNBits holds the same numbers in another order.
    Example: 4 bits in groups of 128 -> 4 + 20 / 128 = 4.156 bits a weight.
    """
    groups = -(-inputs // group_size)
    return -(-outputs * (inputs * bits + groups * (bits + 8 * scale_bytes)) // 8)


def check_groups(text: TextSpec, group_size: int) -> None:
    """Raise BadInput where AWQ's groups do not divide the inputs of every linear layer, with the largest size that does."""
    inputs = {text.hidden, text.intermediate, text.heads * text.head_dim}
    uneven = sorted(size for size in inputs if size % group_size)
    if uneven:
        usable = [size for size in GROUP_SIZES if not any(each % size for each in inputs)]
        remedy = f"--group-size {max(usable)} does" if usable else "use --weights int8 or fp16"
        raise BadInput(f"groups of {group_size} weights do not divide a layer of {uneven[0]} inputs", remedy=remedy)


def decoder_bytes(text: TextSpec, *, weights: str, group_size: int) -> int:
    """Decoder layers and norms, without embedding and lm_head.

    weights: "awq" or "int8" pack all linear layers in groups and keep norms and biases at 16 bits; "fp16", "fp32" as they say.
    Groups divide every layer's inputs (see check_groups), so the number of weights is all that counts; 8 bits may have a rest.
    """
    linear, other = text.linear_parameters, text.other_parameters
    if weights in ("fp16", "fp32"):
        return (linear + other) * BITS[weights] // 8
    bits = 4 if weights == "awq" else 8
    return grouped_bytes(group_size, -(-linear // group_size), bits=bits, group_size=group_size) + 2 * other


def embedding_bytes(text: TextSpec, *, weights: str) -> int:
    """The table of input embeddings: never packed; 16 bits unless all weights have 32."""
    return text.embedding_parameters * (4 if weights == "fp32" else 2)


def lm_head_bytes(text: TextSpec, *, lm_head: str, group_size: int) -> int:
    """The matrix before the logits.

    Where it is tied to the embedding it costs nothing at 16 bits, since the table serves twice; at fewer bits it is a matrix
    of its own beside the table.
    """
    if lm_head in ("int8", "int4"):
        return grouped_bytes(text.hidden, text.vocab, bits=BITS[lm_head], group_size=group_size)
    return text.lm_head_parameters * BITS[lm_head] // 8


def vision_bytes(vision: VisionSpec, *, dtype: str) -> int:
    """The tower; at 8 bits its matrices alone are packed, and everything else stays at 32."""
    return _tower_bytes(vision.parameters, tower_matrices(vision), dtype)


def projector_bytes(projector: ProjectorSpec, *, dtype: str) -> int:
    """The projector, whose parameters are nearly all in matrices."""
    return _tower_bytes(projector.parameters, projector_matrices(projector), dtype)


def tower_matrices(vision: VisionSpec) -> int:
    """Weights in the matrices of a tower's layers."""
    return min(vision.layers * layer_matrices(vision), vision.parameters)


def layer_matrices(vision: VisionSpec) -> int:
    """Weights in the matrices of one layer of a tower."""
    return 4 * vision.width**2 + (2 + vision.gated_mlp) * vision.width * vision.mlp


def projector_matrices(projector: ProjectorSpec) -> int:
    """Weights in a projector's one or two matrices."""
    return min(sum(matrices_of(projector)), projector.parameters)


def matrices_of(projector: ProjectorSpec) -> tuple[int, int]:
    """Weights in each of them; the second has none where nothing is hidden."""
    return projector.input * (projector.hidden or projector.output), projector.hidden * projector.output


def _tower_bytes(parameters: int, matrices: int, dtype: str) -> int:
    if dtype != "int8":
        return parameters * BITS[dtype] // 8
    packed = grouped_bytes(VISION_BLOCK, -(-matrices // VISION_BLOCK), bits=8, group_size=VISION_BLOCK)
    return packed + 4 * (parameters - matrices)

"""Packed weights as ONNX Runtime holds them on a CPU: wider scales than AutoAWQ's, and what it lays beside the codes.

Counted with ONNX Runtime 1.32 on x86-64 with AVX2: twelve products of 4,096 x 4,096, 4 bits in groups of 128, 64 and 32 and 8 bits
in groups of 128 and 32, and the decoders of a 1.1B and a 7B Llama.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlm_edge.core.specs import ProjectorSpec, TextSpec, VisionSpec
from vlm_edge.memory.request import BITS, GROUP_SIZES, Request
from vlm_edge.memory.weights import VISION_BLOCK, grouped_bytes, matrices_of, projector_matrices, tower_matrices

SCALE_BYTES = 4
"""A group's scale in the graph; AutoAWQ's is fp16."""
LAID_BESIDE_BYTES = 8
"""Of each group, in memory alone: its scale once more, and the sum of its codes. The file's own scales stay mapped."""
_PACKED_HEADS = ("int8", "int4")


@dataclass(frozen=True)
class CpuGraph:
    """weights_bytes: of layers and norms.  head_bytes: lm_head's, which is a matrix of its own even where it is tied.
    tables_bytes: cosines and sines of every position.  beside_bytes: held beyond the file.  repacked_bytes: of the largest matrix,
    held twice for a moment while it loads."""

    weights_bytes: int
    head_bytes: int
    tables_bytes: int
    beside_bytes: int
    repacked_bytes: int

    @property
    def file_bytes(self) -> int:
        """Of the graph's data."""
        return self.weights_bytes + self.head_bytes + self.tables_bytes

    @property
    def loaded_bytes(self) -> int:
        """What it takes to load it: the file, what is laid beside it, and the largest matrix once more."""
        return self.file_bytes + self.beside_bytes + self.repacked_bytes


def cpu_graph(text: TextSpec, request: Request) -> CpuGraph:
    """As `quantize --target cpu` writes it, or `export --component llm`; lm_head is fp32 where fp16 is asked for."""
    return _graph(text, request.weights, request.group_size, request.lm_head)


def stored_graph(text: TextSpec, stored_bytes: int) -> CpuGraph:
    """Of a bundle, whose manifest says how large its decoder is and not how it is packed: the nearest of all that there are."""
    if not stored_bytes:
        return CpuGraph(0, 0, 0, 0, 0)
    packed = [_graph(text, "awq", group, head) for group in GROUP_SIZES for head in ("fp16", *_PACKED_HEADS)]
    found = [*packed, *(_graph(text, floats, GROUP_SIZES[0], floats) for floats in ("fp16", "fp32"))]
    return min(found, key=lambda graph: abs(graph.file_bytes - stored_bytes))


def tower_beside_bytes(vision: VisionSpec, projector: ProjectorSpec, *, dtype: str, stored_bytes: int | None) -> int:
    """What is held beyond the file of a tower and projector in 8 bits; nothing for others.

    dtype: as asked for.  stored_bytes: of a bundle's graph, whose size says whether it has 8 bits; None: there is none.
    Where `export` kept integer products in place of MatMulNBits, it is less.
    """
    if stored_bytes is not None:
        dtype = "int8" if 0 < stored_bytes < 2 * (vision.parameters + projector.parameters) else "fp32"
    if dtype != "int8":
        return 0
    return LAID_BESIDE_BYTES * -(-(tower_matrices(vision) + projector_matrices(projector)) // VISION_BLOCK)


def tower_repacked_bytes(vision: VisionSpec, projector: ProjectorSpec) -> int:
    """The largest matrix of tower and projector in fp32, held twice for a moment while it loads."""
    return 4 * max(vision.width * vision.mlp, *matrices_of(projector))


def _graph(text: TextSpec, weights: str, group: int, lm_head: str) -> CpuGraph:
    linear, other, head = text.linear_parameters, text.other_parameters, text.hidden * text.vocab
    angles = text.max_positions * text.head_dim
    if weights in ("fp16", "fp32"):
        elem = BITS[weights] // 8
        # a CPU has no products in fp16: every matrix becomes fp32 while it loads
        widened = (4 - elem) * (linear + other + head + angles)
        return CpuGraph(elem * (linear + other), elem * head, elem * angles, widened, 4 * head)
    codes = _grouped(linear, 4 if weights == "awq" else 8, group)
    packed = lm_head in _PACKED_HEADS
    head_bytes = _grouped(head, BITS[lm_head], group) if packed else 4 * head
    groups = -(-linear // group) + (-(-head // group) if packed else 0)
    return CpuGraph(codes + 4 * other, head_bytes, 4 * angles, LAID_BESIDE_BYTES * groups, head_bytes)


def _grouped(count: int, bits: int, group: int) -> int:
    return grouped_bytes(group, -(-count // group), bits=bits, group_size=group, scale_bytes=SCALE_BYTES)

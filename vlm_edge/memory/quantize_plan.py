"""What quantizing will hold, from sizes alone: integers in, integers out."""

from __future__ import annotations

from dataclasses import dataclass

from vlm_edge.core.calibration import HELD_OUT_EVERY, SEARCH_TOKENS
from vlm_edge.memory.request import Subject

COMPARED_BYTES = 256 << 20
"""What comparing a loaded decoder on a few short prompts takes beside it, its cache and activations. A bound."""
_FLOAT = 4


@dataclass(frozen=True)
class Sizes:
    """Of one model and one calibration set.

    layer: parameters of a decoder layer.  largest: of its largest linear layer.  hidden, intermediate: widths.
    head_scores: values of attention scores that a layer holds for each pair of tokens, 0 with a fused kernel.
    longest: tokens of the longest sequence.  states: values of all hidden states between two layers.
    tower: parameters of vision tower and projector; 0 where no sample has an image.  graph: whether an ONNX decoder is written.
    """

    layer: int
    largest: int
    hidden: int
    intermediate: int
    group_size: int
    longest: int = 0
    states: int = 0
    search_tokens: int = 0
    head_scores: int = 0
    tower: int = 0
    tower_tokens: int = 0
    graph: bool = False


def sizes_of(subject: Subject, *, group_size: int, samples: int, longest: int) -> Sizes:
    """Before a weight or a sample is read: the layer of average size, and every sequence as long as allowed.

    samples: of the calibration set; 0: nothing is calibrated.  longest: tokens of the longest sequence.
    """
    text, vision, projector = subject.text, subject.vision, subject.projector
    tower = vision.parameters + projector.parameters if vision and projector and samples else 0
    heads, sequences = text.heads * text.head_dim, max(1, samples)
    return Sizes(
        layer=-(-(text.linear_parameters + text.other_parameters) // text.layers),
        largest=text.hidden * max(text.intermediate, heads),
        hidden=text.hidden,
        intermediate=max(text.intermediate, heads),
        group_size=group_size,
        longest=longest,
        states=(sequences + 2 * -(-sequences // HELD_OUT_EVERY)) * longest * text.hidden,
        search_tokens=SEARCH_TOKENS,
        tower=tower,
        tower_tokens=subject.geometry.tokens_per_view if subject.geometry is not None and tower else 0,
        graph=True,
    )


@dataclass(frozen=True)
class MemoryPlan:
    """Peaks by phase in bytes.  spilled, resident: of everything, with hidden states in a file and in memory.

    states: of all hidden states, which "encode" alone has among its own.
    """

    phases: dict[str, int]
    spilled: int
    resident: int
    states: int = 0


def plan(sizes: Sizes, base_bytes: int, *, method: str) -> MemoryPlan:
    """base_bytes: what the process holds with its libraries loaded.

    RTN holds a layer, and of its largest linear layer the groups, codes and packed words; AWQ the layer twice (as it is and
    rounded to nearest), and for a search three more copies of the largest linear layer, and what the layers read. A graph is
    compared with one layer multiplied out, beside what unpacks its largest linear layer.
    """
    layer, largest = sizes.layer * _FLOAT, sizes.largest * _FLOAT
    graph = {"graph": base_bytes + layer + layer // 4 + 3 * largest} if sizes.graph else {}
    if method == "rtn":
        phases = {"round": base_bytes + layer + layer // 2 + 3 * largest} | graph
        total = max(phases.values())
        return MemoryPlan(phases, total, total)
    token = (4 * sizes.intermediate + 10 * sizes.hidden) * _FLOAT
    forward = sizes.longest * token + sizes.longest**2 * sizes.head_scores * _FLOAT
    widths = 3 * sizes.hidden + sizes.intermediate
    observed = widths * sizes.group_size * _FLOAT + sizes.search_tokens * 2 * widths * _FLOAT
    searched = sizes.search_tokens * token
    states = sizes.states * _FLOAT
    phases = {
        "encode": base_bytes + sizes.tower * _FLOAT + states + (sizes.tower_tokens * 64 << 10),
        "observe": base_bytes + 2 * layer + observed + forward,
        "search": base_bytes + layer + layer // 2 + 4 * largest + observed + max(searched, forward),
    }
    kept = {name: size + (states if name != "encode" else 0) for name, size in phases.items()} | graph
    phases |= graph
    return MemoryPlan(phases, max(phases.values()), max(kept.values()), states)

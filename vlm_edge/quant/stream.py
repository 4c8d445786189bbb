"""Quantizes a decoder layer by layer: read, observe, search, round, write, record, forget."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from vlm_edge.core.calibration import SEARCH_TOKENS
from vlm_edge.errors import BadInput, CheckFailed
from vlm_edge.quant.layer import LayerResult, Observer, quantize_awq, quantize_plain, run_plain
from vlm_edge.quant.mapping import Architecture, linear_layers, resolve
from vlm_edge.quant.memory_limit import MemoryLimit, release
from vlm_edge.quant.packing import PER_WORD, from_gemm, to_gemm
from vlm_edge.quant.qparams import GROUP_SIZES, Quantized, Scheme, group_sizes_for
from vlm_edge.quant.sequences import HiddenStates, Placement
from vlm_edge.quant.workspace import LayerReport, Workspace

HELD_OUT_TOKENS = 1024
_LOGIT_BYTES = 48 << 20
OnLayer = Callable[[LayerReport], None]


class DecoderSource(Protocol):
    """Gives a decoder's layers one at a time, and says how to call them."""

    def layer(self, index: int) -> nn.Module:
        """Layer `index` in float32; the one given before may be gone."""
        ...

    def arguments(self, index: int, placement: Placement) -> Mapping[str, Any]:
        """What it is called with beside the hidden states [1, L, D]."""
        ...

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Hidden states behind the last layer [T, D] -> logits [T, V]."""
        ...


@dataclass(frozen=True)
class Job:
    """What to do.

    count: layers.  architecture, config: of the text model.  resident: hidden states stay in memory.  keep_first: leave what the
    first layer read in the workspace.
    """

    count: int
    architecture: Architecture
    config: Any
    scheme: Scheme
    method: str = "awq"
    resident: bool = True
    search_tokens: int = SEARCH_TOKENS
    keep_first: bool = False


@dataclass(frozen=True)
class Divergence:
    """Held-out tokens: mean KL(fp32 || rounded) in nats, and the share whose likeliest token is the same."""

    tokens: int
    kl: float
    plain_kl: float
    agreement: float
    plain_agreement: float


def check_sizes(layer: nn.Module, scheme: Scheme) -> None:
    """Raise BadInput for a linear layer that cannot be cut into groups or packed; the layer may be without weights."""
    linears = linear_layers(layer)
    working = [size for size in GROUP_SIZES if all(size in group_sizes_for(m.in_features) for m in linears.values())]
    for name, linear in linears.items():
        if linear.in_features % scheme.group_size:
            fits = f"--group-size {' or '.join(map(str, working))} works" if working else "none of 128, 64 and 32 works"
            raise BadInput(
                f"{name} has {linear.in_features} inputs, which is no multiple of the group size {scheme.group_size}",
                remedy=f"for all layers of this model, {fits}",
            )
        if linear.out_features % PER_WORD:
            raise BadInput(
                f"{name} has {linear.out_features} outputs, which is no multiple of {PER_WORD}",
                remedy="AutoAWQ's format packs eight outputs into a word: this model cannot be written in it",
            )


def stream(
    source: DecoderSource, work: Workspace, job: Job, limit: MemoryLimit, on_layer: OnLayer = lambda _: None
) -> None:
    """Quantize the layers that the workspace does not hold yet.

    Raises BadInput for weights that are not finite and when memory runs out; CheckFailed when a written layer does not read back
    as what was searched.
    """
    done = len(work.state.layers)
    states = placements = None
    if job.method == "awq" and done < job.count:
        states, placements = work.hidden_states(resident=job.resident), work.placements()
        states.open(done)
    for index in range(done, job.count):
        started = time.monotonic()
        with torch.no_grad():
            layer = source.layer(index)
            check_finite(layer, index)
            limit.check()
            if states is None or placements is None:
                result = LayerResult(quantize_plain(layer, job.scheme), (), {})
                errors: tuple[float | None, float | None] = None, None
            else:
                result, errors = _calibrated(source, layer, index, states, placements, work.state.held_out, job, limit)
            _write(work, index, layer, result.quantized)
        clips = dict(result.clip_share) or None
        report = LayerReport(index, result.pairs, clips, *errors, seconds=time.monotonic() - started)
        if states is not None:
            states.advance()
        work.record(report)
        if states is not None and not (job.keep_first and index == 0):
            states.drop(index)
        del layer, result
        release()
        limit.check()
        on_layer(report)


def check_finite(layer: nn.Module, index: int) -> None:
    """Raise BadInput that names the first parameter with NaN or Inf in it."""
    for name, parameter in layer.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise BadInput(
                f"layer {index}: {name} holds NaN or Inf",
                remedy="the checkpoint is damaged: download or convert it again",
            )


def _calibrated(
    source: DecoderSource, layer: nn.Module, index: int, states: HiddenStates, placements: list[Placement],
    held_out: int, job: Job, limit: MemoryLimit,
) -> tuple[LayerResult, tuple[float, float]]:  # fmt: skip
    pairs = resolve(job.architecture, layer, job.config)
    calibrating = len(placements) - 3 * held_out
    states.begin(index + 1)

    def run(sequences: range) -> None:
        for i in sequences:
            output = layer(states.get(i)[None].to(_device(layer)), **source.arguments(index, placements[i]))
            states.put(i, (output[0] if isinstance(output, tuple) else output)[0])
            limit.check()

    observer = Observer(
        layer, pairs, job.scheme, [place.length for place in placements[:calibrating]], job.search_tokens
    )
    for observer.sequence in range(calibrating):
        run(range(observer.sequence, observer.sequence + 1))
    observer.close()
    original, rounded, plain = (range(calibrating + i * held_out, calibrating + (i + 1) * held_out) for i in range(3))
    run(original)
    run_plain(layer, job.scheme, lambda: run(plain))
    release()
    result = quantize_awq(layer, job.architecture, pairs, observer.seen, job.scheme, limit.check)
    run(rounded)
    return result, (_error(states, original, rounded), _error(states, original, plain))


def _device(layer: nn.Module) -> torch.device:
    found: torch.device = next(layer.parameters()).device
    return found


def _error(states: HiddenStates, wanted: range, found: range) -> float:
    """Squared error of new states relative to the wanted ones' squares."""
    lost = total = 0.0
    for i, j in zip(wanted, found, strict=True):
        right, other = states.fresh(i), states.fresh(j)
        lost += float((other - right).square().sum())
        total += float(right.square().sum())
    return lost / max(total, 1e-30)


def _write(work: Workspace, index: int, layer: nn.Module, quantized: Mapping[str, Quantized]) -> None:
    """Pack and write a layer, read it back, and compare it bit by bit with what was searched."""
    tensors: dict[str, torch.Tensor] = {}
    for name, found in quantized.items():
        if not bool(found.scale.isfinite().all()):
            raise BadInput(
                f"layer {index}: {name} holds weights beyond what float16 scales can express",
                remedy="the checkpoint is damaged: download or convert it again",
            )
        tensors |= {f"{name}.{part}": tensor.cpu() for part, tensor in to_gemm(found).items()}
    tensors |= {name: half(parameter.data, f"layer {index}: {name}") for name, parameter in _others(layer)}
    read = work.write_layer(index, tensors)
    for name, found in quantized.items():
        own = {part: read[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales")}
        if not torch.equal(from_gemm(own).dequantized(), found.dequantized().cpu()):
            raise CheckFailed(
                f"layer {index}: {name} reads back other than it was searched",
                remedy="check the disk, and run it again",
            )


def _others(layer: nn.Module) -> list[tuple[str, torch.Tensor]]:
    weights = {f"{name}.weight" for name in linear_layers(layer)}
    return [(name, parameter) for name, parameter in layer.named_parameters() if name not in weights]


def half(values: torch.Tensor, what: str) -> torch.Tensor:
    """Values as float16; raises BadInput where that would make them infinite."""
    found = values.to("cpu", torch.float16).contiguous()
    if not bool(found.isfinite().all()):
        raise BadInput(
            f"{what} holds values beyond float16's range",
            remedy="AutoAWQ's format is float16: this checkpoint cannot be written in it",
        )
    return found


def divergence(source: DecoderSource, work: Workspace) -> Divergence:
    """Compare the held-out sequences' logits of the fp32 model, the searched one and the plainly rounded one."""
    states, placements, held = work.hidden_states(resident=False), work.placements(), work.state.held_out
    states.open(len(work.state.layers))
    first = len(placements) - 3 * held
    judged = sum(place.length - place.judged_from for place in placements[first : first + held])
    stride = max(1, -(-judged // HELD_OUT_TOKENS))
    tokens, sums = 0, [0.0] * 4
    for i in range(first, first + held):
        rows = [states.get(i + shift * held)[placements[i].judged_from :: stride] for shift in range(3)]
        for block in _blocks(rows, source):
            right, *others = (source.logits(part).double().log_softmax(-1) for part in block)
            for n, other in enumerate(others):
                sums[n] += float((right.exp() * (right - other)).sum())
                sums[2 + n] += float((right.argmax(-1) == other.argmax(-1)).sum())
            tokens += right.shape[0]
    kl, plain_kl, agreement, plain_agreement = (value / max(1, tokens) for value in sums)
    return Divergence(tokens, kl, plain_kl, agreement, plain_agreement)


def _blocks(rows: list[torch.Tensor], source: DecoderSource) -> list[tuple[torch.Tensor, ...]]:
    """So many tokens at once that their logits in float64 stay small."""
    if not rows[0].shape[0]:
        return []
    vocabulary = source.logits(rows[0][:1]).shape[1]
    size = max(1, _LOGIT_BYTES // (8 * vocabulary))
    return list(zip(*(part.split(size) for part in rows), strict=True))

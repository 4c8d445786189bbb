"""One decoder layer: what its linear layers read, the searches on it, and the rounded weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vlm_edge.core.calibration import SEARCH_TOKENS
from vlm_edge.quant.folding import STORED, fold
from vlm_edge.quant.mapping import Architecture, ScalePair, linear_layers
from vlm_edge.quant.qparams import Quantized, Scheme, quantize, rounded
from vlm_edge.quant.search import (
    Loss,
    ScaleChoice,
    clipped,
    linear_loss,
    module_loss,
    replaced,
    search_clip,
    search_scales,
)

LEAST_SEQUENCES = 4
Check = Callable[[], None]


@dataclass
class Observed:
    """What layers with one input read over the calibration set.

    total: sum of |x| [in].  gram: sum of x x^T within each group [in / group, group, group].  rows: a token subsample.
    calls: whole inputs of the inspected module with the arguments that it was called with.
    """

    total: torch.Tensor
    gram: torch.Tensor
    tokens: int = 0
    rows: list[torch.Tensor] = field(default_factory=list)
    calls: list[tuple[torch.Tensor, Mapping[str, Any]]] = field(default_factory=list)


@dataclass(frozen=True)
class PairReport:
    """One search of scales.  ratio: None where plain rounding was best.  searched_tokens: how many rows judged it."""

    linears: tuple[str, ...]
    ratio: float | None
    loss: float
    plain_loss: float
    searched_tokens: int


@dataclass(frozen=True)
class LayerResult:
    """The rounded weights by name, what was searched, and each clipped linear's share of groups that lost their outliers."""

    quantized: Mapping[str, Quantized]
    pairs: tuple[PairReport, ...]
    clip_share: Mapping[str, float]


class Observer:
    """Hooks on a decoder layer while calibration sequences pass through it, one at a time.

    lengths: of all sequences, in the order in which they come; from them it follows which rows and which whole sequences make up
    the subsample.  sequence: the one that passes now; set by the caller.
    """

    def __init__(
        self, layer: nn.Module, pairs: Sequence[ScalePair], scheme: Scheme, lengths: Sequence[int],
        search_tokens: int = SEARCH_TOKENS,
    ) -> None:  # fmt: skip
        self.stride = max(1, -(-sum(lengths) // search_tokens))
        self.whole = _spread(lengths, search_tokens)
        self.sequence = 0
        self.scheme = scheme
        self.seen = {pair.linears[0]: _nothing(layer, pair, scheme) for pair in pairs}
        self._handles: list[Any] = []
        for pair in pairs:
            first = layer.get_submodule(pair.linears[0])
            self._handles.append(first.register_forward_pre_hook(self._rows_hook(pair)))
            if _reads_arguments(pair):
                block = layer.get_submodule(pair.inspect)
                self._handles.append(block.register_forward_pre_hook(self._call_hook(pair), with_kwargs=True))

    def close(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()

    def _rows_hook(self, pair: ScalePair) -> Callable[..., None]:
        seen = self.seen[pair.linears[0]]

        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])
            seen.total += rows.abs().sum(0)
            grouped = rows.view(rows.shape[0], -1, self.scheme.group_size).transpose(0, 1)
            seen.gram.baddbmm_(grouped.transpose(1, 2), grouped)
            if not _reads_arguments(pair):
                first = -seen.tokens % self.stride
                seen.rows.append(rows[first :: self.stride].clone())
            seen.tokens += rows.shape[0]

        return hook

    def _call_hook(self, pair: ScalePair) -> Callable[..., None]:
        seen = self.seen[pair.linears[0]]

        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...], named: Mapping[str, Any]) -> None:
            if self.sequence in self.whole:
                # Its first argument, which some layers pass by name.
                given = dict(named)
                states = inputs[0] if inputs else given.pop("hidden_states")
                seen.calls.append((states.clone(), given))

        return hook


def _reads_arguments(pair: ScalePair) -> bool:
    """Attention needs whole sequences with masks and positions; the rest is judged on rows."""
    return pair.fold != "none" and pair.inspect == "self_attn"


def _nothing(layer: nn.Module, pair: ScalePair, scheme: Scheme) -> Observed:
    weight = layer.get_submodule(pair.linears[0]).weight
    width, size = weight.shape[1], scheme.group_size
    return Observed(weight.new_zeros(width), weight.new_zeros(width // size, size, size))


def _spread(lengths: Sequence[int], tokens: int) -> frozenset[int]:
    """Sequences at even distances whose lengths together come close to `tokens`; LEAST_SEQUENCES at least.

    One long prompt is either about an image or not, and what attends to what differs.
    """
    wanted = max(LEAST_SEQUENCES, round(tokens * len(lengths) / max(1, sum(lengths))))
    wanted = min(wanted, len(lengths))
    return frozenset(int((i + 0.5) * len(lengths) / wanted) for i in range(wanted))


def quantize_plain(layer: nn.Module, scheme: Scheme) -> dict[str, Quantized]:
    """Round every linear layer to nearest, and nothing else."""
    return {name: quantize(linear.weight.data, scheme) for name, linear in linear_layers(layer).items()}


def quantize_awq(
    layer: nn.Module, architecture: Architecture, pairs: Sequence[ScalePair], observed: Mapping[str, Observed],
    scheme: Scheme, check: Check = lambda: None,
) -> LayerResult:  # fmt: skip
    """Search scales, fold them, search clips, round; the layer then computes with the rounded weights.

    Every scale is searched on the layer as it was; then all are folded; then clips are searched on the scaled weights.
    check: called between the steps, to stop by raising.
    """
    linears = linear_layers(layer)
    choices: dict[str, ScaleChoice] = {}
    for pair in pairs:
        if pair.fold != "none":
            choices[pair.linears[0]] = _search(layer, pair, linears, observed[pair.linears[0]], scheme)
            check()
    in_effect = {
        pair.linears[0]: fold(pair, layer, choices[pair.linears[0]].scales)
        for pair in pairs
        if pair.linears[0] in choices and choices[pair.linears[0]].ratio is not None
    }
    round_others(layer)
    quantized, clip_share = {}, {}
    for pair in pairs:
        seen = observed[pair.linears[0]]
        gram = seen.gram / max(1, seen.tokens)
        if (scales := in_effect.get(pair.linears[0])) is not None:
            blocks = scales.view(-1, scheme.group_size)
            gram = gram / (blocks[:, :, None] * blocks[:, None, :])
        for name in pair.linears:
            weight = linears[name].weight.data
            if name not in architecture.unclipped:
                limit = search_clip(weight, gram, scheme)
                largest = weight.view(*limit.shape, -1).abs().amax(-1)
                clip_share[name] = float((limit < largest).float().mean())
                weight = clipped(weight, limit)
            quantized[name] = quantize(weight, scheme)
            linears[name].weight.data = quantized[name].dequantized()
            check()
    reports = tuple(
        PairReport(pair.linears, choice.ratio, choice.loss, choice.plain_loss, _searched(observed[pair.linears[0]]))
        for pair in pairs
        if (choice := choices.get(pair.linears[0])) is not None
    )
    return LayerResult(quantized, reports, clip_share)


def _searched(seen: Observed) -> int:
    counts: list[int] = [*(rows.shape[0] for rows in seen.rows), *(states.shape[1] for states, _ in seen.calls)]
    return sum(counts)


def _search(
    layer: nn.Module, pair: ScalePair, linears: Mapping[str, nn.Linear], seen: Observed, scheme: Scheme
) -> ScaleChoice:
    own = {name: linears[name] for name in pair.linears}
    return search_scales(own, seen.total / max(1, seen.tokens), _loss(layer, pair, own, seen), scheme)


def _loss(layer: nn.Module, pair: ScalePair, own: Mapping[str, nn.Linear], seen: Observed) -> Loss:
    if pair.linears == (pair.inspect,):
        return linear_loss(pair.inspect, own[pair.inspect].weight.data, torch.cat(seen.rows))
    block = layer.get_submodule(pair.inspect)
    calls = seen.calls or [(torch.cat(seen.rows), {})]

    def run() -> Iterator[torch.Tensor]:
        for states, named in calls:
            output = block(states, **named)
            yield output[0] if isinstance(output, tuple) else output

    return module_loss(own, run)


def round_others(layer: nn.Module) -> None:
    """Everything but the linear layers' weights as it will be stored: what is measured is what is written."""
    weights = {id(linear.weight) for linear in linear_layers(layer).values()}
    for parameter in layer.parameters():
        if id(parameter) not in weights:
            parameter.data = parameter.data.to(STORED).to(parameter.dtype)


def plain_weights(layer: nn.Module, scheme: Scheme) -> dict[str, torch.Tensor]:
    """Every linear layer's weight rounded to nearest and back."""
    return {name: rounded(linear.weight.data, scheme) for name, linear in linear_layers(layer).items()}


def run_plain(layer: nn.Module, scheme: Scheme, run: Callable[[], None]) -> None:
    """Call `run` while the layer computes with weights rounded to nearest."""
    with replaced(linear_layers(layer), plain_weights(layer, scheme)):
        run()

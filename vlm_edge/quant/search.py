"""AWQ's two searches: scales that protect channels with large activations, and limits that give up outliers.

After Lin et al., "AWQ: Activation-aware Weight Quantization" (arXiv 2306.00978). Rounding W * s and dividing the input by s leaves
the product as it is and moves the error of rounding away from channels with a large s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from vlm_edge.quant.qparams import Scheme, rounded

RATIOS = tuple(i / 20 for i in range(20))
SHRINKS = tuple(1 - i / 20 for i in range(10))
_FLOOR = 1e-4
Loss = Callable[[Mapping[str, torch.Tensor]], float]
"""Weights by linear layer -> squared error of the inspected module's output."""


@dataclass(frozen=True)
class ScaleChoice:
    """What the scale search found.

    ratio: exponent of the activations, or None where no scale beats plain rounding.  scales: float32 [in].
    loss, plain_loss: mean squared error of the inspected output with these scales, and with plain rounding (RTN).
    """

    ratio: float | None
    scales: torch.Tensor
    loss: float
    plain_loss: float


def weight_importance(weights: Sequence[torch.Tensor], group_size: int) -> torch.Tensor:
    """w_mean [in]: the mean over all outputs of |W| / (the group's largest |W| + 1e-6); weights: [out_i, in] each."""
    width = weights[0].shape[1]
    total, rows = torch.zeros(width, device=weights[0].device), 0
    for weight in weights:
        grouped = weight.abs().view(weight.shape[0], -1, group_size)
        share = grouped / (grouped.amax(-1, keepdim=True) + 1e-6)
        total += share.view(-1, width).sum(0)
        rows += weight.shape[0]
    return total / rows


def scales_for(ratio: float, x_mean: torch.Tensor, w_mean: torch.Tensor) -> torch.Tensor:
    """s = x_mean^r / (w_mean^(1 - r) + 1e-4), at least 1e-4, divided by sqrt(max * min); all [in]."""
    scales = (x_mean.pow(ratio) / (w_mean.pow(1 - ratio) + _FLOOR)).clamp(min=_FLOOR)
    scales = scales / (scales.max() * scales.min()).sqrt()
    return torch.where(scales.isfinite(), scales, torch.ones_like(scales))


def search_scales(linears: Mapping[str, nn.Linear], x_mean: torch.Tensor, loss: Loss, scheme: Scheme) -> ScaleChoice:
    """Try every ratio, and no scales at all, on layers that read one input; the first of equal losses wins.

    x_mean: mean |x| of each input channel [in].  loss: judges rounded weights with the scales divided out again.
    """
    weights = {name: linear.weight for name, linear in linears.items()}
    w_mean = weight_importance(list(weights.values()), scheme.group_size)
    plain = loss({name: rounded(weight, scheme) for name, weight in weights.items()})
    best = ScaleChoice(None, torch.ones_like(x_mean), plain, plain)
    for ratio in RATIOS:
        scales = scales_for(ratio, x_mean, w_mean)
        found = loss({name: rounded(weight * scales, scheme).div_(scales) for name, weight in weights.items()})
        if found < best.loss:
            best = ScaleChoice(ratio, scales, found, plain)
    return best


def linear_loss(name: str, weight: torch.Tensor, rows: torch.Tensor) -> Loss:
    """Mean squared error of a linear layer's own output on input rows [T, in]; its bias cancels out."""

    def loss(weights: Mapping[str, torch.Tensor]) -> float:
        return float((rows @ (weights[name] - weight).t()).square().mean())

    return loss


def module_loss(linears: Mapping[str, nn.Linear], run: Callable[[], Iterator[torch.Tensor]]) -> Loss:
    """Mean squared error of a module's outputs against those that it has now.

    run: yields the module's output for each input that it is judged on.
    """
    reference = [output.clone() for output in run()]
    count: int = sum(output.numel() for output in reference)

    def loss(weights: Mapping[str, torch.Tensor]) -> float:
        with replaced(linears, weights):
            errors = [float((new - old).square().sum()) for new, old in zip(run(), reference, strict=True)]
        total: float = sum(errors)
        return total / count

    return loss


@contextmanager
def replaced(linears: Mapping[str, nn.Linear], weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Put other weights into linear layers for the time of the block."""
    own = {name: linear.weight.data for name, linear in linears.items() if name in weights}
    try:
        for name in own:
            linears[name].weight.data = weights[name]
        yield
    finally:
        for name, weight in own.items():
            linears[name].weight.data = weight


def search_clip(weight: torch.Tensor, gram: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """The limit on |w| for every group of every row that costs the group's own output least: [out, in / group].

    weight: [out, in].  gram: [in / group, group, group], the mean over all tokens of x x^T within each group; with the rounding
    error d of a row's group, d^T gram d is the mean squared error of that group's share of the output, over every token,
    without a product for each token.  Limits tried: the group's largest |w| times 1, 0.95 ... 0.55; the largest of equals wins.
    """
    rows, size = weight.shape[0], scheme.group_size
    groups = weight.view(rows, -1, size).transpose(0, 1)
    largest = groups.abs().amax(-1, keepdim=True)
    best_limit, best_error = largest.clone(), torch.full_like(largest, torch.inf)
    for shrink in SHRINKS:
        limit = largest * shrink
        change = rounded(groups.clamp(-limit, limit), scheme).sub_(groups)
        error = torch.bmm(change, gram).mul_(change).sum(-1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_limit = torch.where(better, limit, best_limit)
    return best_limit.squeeze(-1).t().contiguous()


def clipped(weight: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """weight [out, in] with each group cut to +-limit [out, in / group]."""
    grouped = weight.view(*limit.shape, -1)
    return torch.maximum(torch.minimum(grouped, limit[..., None]), -limit[..., None]).view(weight.shape)

"""What a torch module computes, watched from outside: reference outputs, samples of every layer, ranges of its values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.contracts import Floats

Arrays = Mapping[str, NDArray[Any]]
SAMPLED_VALUES = 4096
MASKED = 1e30
"""Magnitudes from here on stand for minus infinity in a mask; they are no activations."""


@dataclass(frozen=True)
class LayerSample:
    """Every `step`-th value of a layer's output, flattened: what is kept of a layer that the torch module no longer holds."""

    size: int
    step: int
    values: Floats


@dataclass(frozen=True)
class Observation:
    """A module's run in fp32.

    outputs: one for each input.  layers: module path -> sample of its output on the first input, in the order in which modules
    finish.  channel_absmax: norm's path -> largest magnitude of each channel of its output, over all inputs.
    """

    outputs: tuple[Floats, ...]
    layers: Mapping[str, LayerSample] = field(default_factory=dict)
    channel_absmax: Mapping[str, Floats] = field(default_factory=dict)


def sample(values: NDArray[Any]) -> LayerSample:
    """At most SAMPLED_VALUES values at equal distances."""
    flat = values.reshape(-1)
    step = max(1, -(-flat.size // SAMPLED_VALUES))
    return LayerSample(flat.size, step, flat[::step].astype(np.float32))


def observe(module: Any, inputs: Sequence[Arrays]) -> Observation:
    """Run the module on each input and keep what a parity check needs later, when the weights are gone."""
    layers: dict[str, LayerSample] = {}
    channels: dict[str, Floats] = {}

    def keep(path: str, child: Any, output: Any) -> None:
        first = _only_floats(output)
        if first is None:
            return
        if not outputs:
            layers[path] = sample(first.numpy())
        if "norm" in type(child).__name__.lower():
            largest: Floats = first.abs().flatten(0, -2).amax(0).numpy()
            channels[path] = np.maximum(channels[path], largest) if path in channels else largest

    outputs: list[Floats] = []
    with _after_each(module, keep):
        for arrays in inputs:
            outputs.append(_call(module, arrays))
    return Observation(tuple(outputs), layers, channels)


def layer_absmax(module: Any, inputs: Sequence[Arrays]) -> dict[str, float]:
    """Module path -> the largest magnitude that any operation directly inside it reads or gives, over all inputs.

    Counts what modules hide: attention scores before the softmax, squares inside a norm, residual sums, the weights. The path
    of the module itself is `""`. Values of masks are left out.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    absmax: dict[str, float] = {}
    inside = [""]

    class Ranges(TorchDispatchMode):  # type: ignore[misc]  # torch is not followed by mypy
        """Sees every operation with its arguments and results."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            largest = max((_largest(leaf) for leaf in tree_leaves((args, kwargs, result))), default=0.0)
            absmax[inside[-1]] = max(absmax.get(inside[-1], 0.0), largest)
            return result

    def leave(_module: Any, _args: Any, _output: Any) -> None:
        inside.pop()

    hooks = []
    for path, child in module.named_modules():
        hooks.append(child.register_forward_pre_hook(lambda _module, _args, path=path: inside.append(path)))
        hooks.append(child.register_forward_hook(leave))
    try:
        # The fused attention kernel would hide the scores.
        with sdpa_kernel(SDPBackend.MATH):
            for arrays in inputs:
                with Ranges():
                    _call(module, arrays)
    finally:
        for hook in hooks:
            hook.remove()
    return absmax


def _only_floats(output: Any) -> Any:
    """A module's output, or the only tensor of a tuple; None where several could be meant, since a graph does not tell."""
    import torch

    tensors = [part for part in (output if isinstance(output, tuple) else (output,)) if isinstance(part, torch.Tensor)]
    return tensors[0] if len(tensors) == 1 and tensors[0].is_floating_point() else None


def _largest(leaf: Any) -> float:
    import torch

    if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point() or leaf.numel() == 0:
        return 0.0
    magnitude = leaf.detach().abs()
    return float(torch.where(magnitude < MASKED, magnitude, 0.0).max())


def _call(module: Any, arrays: Arrays) -> Floats:
    import torch

    with torch.no_grad():
        output: Floats = module(**{name: torch.from_numpy(value) for name, value in arrays.items()}).numpy()
    return output


@contextmanager
def _after_each(module: Any, keep: Any) -> Iterator[None]:
    hooks = [
        child.register_forward_hook(lambda child, _args, output, path=path: keep(path, child, output))
        for path, child in module.named_modules()
        if path
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

"""A saliency model as an ONNX file: the network that ships with a bundle, or anybody's with the same signature.

One input float32 [N, 3, H, W], RGB in 0..1, of varying H and W; one output float32 [N, H / s, W / s] of values that are 0 or more,
where s, the stride, is the same down and across and divides 64. Normalisation is the graph's own affair, and so is the
sigmoid: 0 is nothing, and twice the value is worth twice as much to whoever places tiles.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vlm_edge.backends.onnx.session import Graph, open_session
from vlm_edge.core.contracts import Floats
from vlm_edge.errors import BadInput, DamagedBundle, VlmEdgeError

PROBE_PX = 128
SIGNATURE = "one float32 input [N, 3, H, W] of any size, one output [N, H / s, W / s] with a stride s that divides 64"


class OnnxSaliency:
    """Runs a saliency model on a CPU. Opening it runs it once, to see its stride.

    Raises BadInput for a file that is missing, no ONNX model, or of another signature; MissingDependency without ONNX Runtime.
    """

    def __init__(self, model: Path, *, threads: int) -> None:
        if not model.is_file():
            raise BadInput(f"the saliency model {model} does not exist", remedy="check the path")
        try:
            self._session: Graph = open_session(model, target="cpu", threads=threads)
        except DamagedBundle as cause:
            raise BadInput(cause.message, remedy="name an ONNX file that ONNX Runtime here can load") from cause
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._input = inputs[0].name
        taken = inputs[0].shape
        fits = len(inputs) == len(outputs) == 1 and inputs[0].type == "tensor(float)" and len(taken) == 4
        if not fits or taken[1] not in (3, None) or any(isinstance(size, int) for size in taken[2:]):
            raise _refusal(model, f"takes {', '.join(f'{i.type} {i.shape}' for i in inputs)}")
        try:
            given = self._session.run(None, {self._input: np.zeros((1, 3, PROBE_PX, 2 * PROBE_PX), np.float32)})[0]
        except VlmEdgeError as cause:
            raise _refusal(model, f"fails on a black image ({cause.message})") from cause
        stride = PROBE_PX // max(1, given.shape[1]) if given.ndim == 3 else 0
        if (
            given.dtype != np.float32
            or not stride
            or 64 % stride
            or given.shape != (1, PROBE_PX // stride, 2 * PROBE_PX // stride)
        ):
            raise _refusal(model, f"gives {given.dtype} {list(given.shape)} for [1, 3, {PROBE_PX}, {2 * PROBE_PX}]")
        self._stride = stride

    @property
    def stride_px(self) -> int:
        """Pixels along a side for which there is one value."""
        return self._stride

    def run(self, pixels: Floats) -> Floats:
        """[N, 3, H, W], RGB in 0..1 -> [N, H / stride_px, W / stride_px]."""
        found: Floats = self._session.run(None, {self._input: pixels})[0]
        return found


def _refusal(model: Path, what: str) -> BadInput:
    return BadInput(f"the saliency model {model} {what}", remedy=f"export it with {SIGNATURE}")

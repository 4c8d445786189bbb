"""The vision tower and projector as one ONNX graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vlm_edge.backends.onnx.session import open_session
from vlm_edge.core.contracts import Floats
from vlm_edge.errors import CheckFailed
from vlm_edge.memory.plan import ENCODE_VIEWS


class OnnxEncoder:
    """Runs `pixel_values` [B, 3, S, S] -> `image_features` [B, P, Dl], at most ENCODE_VIEWS views at a time."""

    def __init__(self, graph: Path, *, target: str, threads: int) -> None:
        self._session = open_session(graph, target=target, threads=threads)
        self._input = self._session.get_inputs()[0].name

    def encode(self, pixels: Floats) -> Floats:
        """Visual embeddings [B, P, Dl]; raises CheckFailed when any is not finite."""
        parts = [
            self._session.run(None, {self._input: pixels[i : i + ENCODE_VIEWS]})[0]
            for i in range(0, len(pixels), ENCODE_VIEWS)
        ]
        features: Floats = np.concatenate(parts).astype(np.float32, copy=False)
        if not np.isfinite(features).all():
            raise CheckFailed(
                "the vision encoder produced values that are not finite",
                remedy="export the vision encoder again with --dtype fp32",
            )
        return features

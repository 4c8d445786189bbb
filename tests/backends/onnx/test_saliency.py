"""Saliency models: the signature that they must have, and what is said of files that have another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vlm_edge.backends.onnx.graph_builder import GraphBuilder
from vlm_edge.backends.onnx.saliency import OnnxSaliency
from vlm_edge.errors import BadInput

onnx = pytest.importorskip("onnx")
ANY = ("n", 3, "h", "w")
Nodes = Callable[[GraphBuilder], object]


def pooled(stride: int) -> Nodes:
    """Mean brightness of each stride x stride px."""

    def build(graph: GraphBuilder) -> None:
        mean = graph.op("AveragePool", "pixels", kernel_shape=[stride, stride], strides=[stride, stride])
        graph.op("ReduceMean", mean, graph.integers(1), keepdims=0, output="saliency")

    return build


def unchanged(graph: GraphBuilder) -> None:
    graph.op("Identity", "pixels", output="saliency")


def impossible(graph: GraphBuilder) -> None:
    graph.op("Reshape", "pixels", graph.integers(1, 7, 7), output="saliency")


def model(
    tmp_path: Path, nodes: Nodes, shape: tuple[int | str, ...] = ANY, out: tuple[str, ...] = ("n", "r", "c")
) -> Path:
    graph = GraphBuilder("")
    nodes(graph)
    onnx.save(graph.model("m", [("pixels", shape)], [("saliency", np.float32, out)]), str(tmp_path / "m.onnx"))
    return tmp_path / "m.onnx"


@pytest.mark.parametrize("stride", [1, 8, 64])
def test_any_model_of_the_signature_runs(stride, tmp_path):
    runner = OnnxSaliency(model(tmp_path, pooled(stride)), threads=1)
    assert runner.stride_px == stride
    pixels = np.random.default_rng(0).random((2, 3, 64, 192), np.float32)
    expected = pixels.mean(1).reshape(2, 64 // stride, stride, 192 // stride, stride).mean((2, 4))
    np.testing.assert_allclose(runner.run(pixels), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("nodes", "shape", "out", "what"),
    [
        (pooled(128), ANY, ("n", "r", "c"), r"gives float32 \[1, 1, 2\]"),
        (pooled(8), ("n", 3, 128, 256), ("n", "r", "c"), "takes tensor"),
        (pooled(8), ("n", 1, "h", "w"), ("n", "r", "c"), "takes tensor"),
        (unchanged, ANY, ("n", "k", "r", "c"), r"gives float32 \[1, 3, 128, 256\]"),
        (impossible, ANY, ("n", "r", "c"), "fails on a black image"),
    ],
)  # fmt: skip
def test_another_signature_is_refused_with_the_right_one(nodes, shape, out, what, tmp_path):
    with pytest.raises(BadInput, match=what) as caught:
        OnnxSaliency(model(tmp_path, nodes, shape, out), threads=1)
    assert "[N, 3, H, W]" in caught.value.remedy


def test_files_that_are_no_model_are_refused(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        OnnxSaliency(tmp_path / "none.onnx", threads=1)
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(BadInput, match="cannot be loaded") as caught:
        OnnxSaliency(tmp_path / "text.onnx", threads=1)
    assert "ONNX file" in caught.value.remedy

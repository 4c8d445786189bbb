"""Encoders of one input and of several, in parts and as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlm_edge.backends.onnx.runner import OnnxEncoder
from vlm_edge.errors import BadInput
from vlm_edge.memory.plan import ENCODE_VIEWS

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def graph(path: Path, axes: dict[str, str], output: str) -> Path:
    """image_features = a - mean over all rows of a, plus the number of rows of b; `a` alone without b."""
    helper = onnx.helper
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [axis, 2]) for name, axis in axes.items()]
    nodes = [
        helper.make_node("ReduceMean", ["a"], ["mean"], keepdims=1, axes=[0]),
        helper.make_node("Sub", ["a", "mean"], ["image_features"]),
    ]
    if "b" in axes:
        nodes[1].output[0] = "centred"
        nodes += [
            helper.make_node("Shape", ["b"], ["count"], start=0, end=1),
            helper.make_node("Cast", ["count"], ["real"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Add", ["centred", "real"], ["image_features"]),
        ]
    out = helper.make_tensor_value_info("image_features", onnx.TensorProto.FLOAT, [output, 2])
    made = helper.make_graph(nodes, "g", inputs, [out])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def rows(count: int) -> np.ndarray:
    return np.arange(count * 2, dtype=np.float32).reshape(count, 2)


def test_views_are_run_a_few_at_a_time(tmp_path: Path) -> None:
    encoder = OnnxEncoder(graph(tmp_path / "m.onnx", {"a": "views"}, "views"), target="cpu", threads=1)
    given = rows(ENCODE_VIEWS + 3)
    parts = [given[:ENCODE_VIEWS], given[ENCODE_VIEWS:]]
    expected = np.concatenate([part - part.mean(0) for part in parts])
    np.testing.assert_allclose(encoder.encode(given), expected)
    np.testing.assert_allclose(encoder.encode({"a": given}), expected)


def test_inputs_of_one_number_of_views_are_cut_together(tmp_path: Path) -> None:
    encoder = OnnxEncoder(graph(tmp_path / "m.onnx", {"a": "views", "b": "views"}, "views"), target="cpu", threads=1)
    given = rows(ENCODE_VIEWS + 3)
    parts = [given[:ENCODE_VIEWS], given[ENCODE_VIEWS:]]
    expected = np.concatenate([part - part.mean(0) + len(part) for part in parts])
    np.testing.assert_allclose(encoder.encode({"a": given, "b": given}), expected)


@pytest.mark.parametrize(("second", "output"), [("segments", "patches"), ("patches", "merged")])
def test_packed_patches_are_run_as_a_whole(tmp_path: Path, second: str, output: str) -> None:
    encoder = OnnxEncoder(graph(tmp_path / "m.onnx", {"a": "patches", "b": second}, output), target="cpu", threads=1)
    given = rows(5 * ENCODE_VIEWS)
    expected = given - given.mean(0) + len(given)
    np.testing.assert_allclose(encoder.encode({"a": given, "b": given}), expected)


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c"), ("a", "c")])
def test_other_inputs_than_the_graphs_are_named(tmp_path: Path, names: tuple[str, ...]) -> None:
    encoder = OnnxEncoder(graph(tmp_path / "m.onnx", {"a": "views", "b": "views"}, "views"), target="cpu", threads=1)
    given: dict[str, Any] = {name: rows(2) for name in names}
    with pytest.raises(BadInput, match="takes a, b"):
        encoder.encode(given)
    assert encoder.inputs == ("a", "b")

"""Reducer graphs against the NumPy reducers, TensorRT's operator table, and behind a real encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.tokens.features import patchy
from vlm_edge.backends.onnx.reducers import METHODS, TAKES_SCORES, OnnxReducer, follow, reducer_graph
from vlm_edge.backends.onnx.runner import OnnxEncoder
from vlm_edge.backends.onnx.session import open_session
from vlm_edge.backends.tensorrt.operators import check_graph
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.embedded import NANO
from vlm_edge.tokens import reduce_tokens
from vlm_edge.vision import saliency

onnx = pytest.importorskip("onnx")
SHAPES = [(1, 1, 1, 3), (2, 1, 7, 5), (3, 5, 4, 9), (1, 8, 8, 16), (4, 3, 3, 2)]


def saved(tmp_path: Path, model: object) -> Path:
    onnx.save(model, str(tmp_path / "reduce.onnx"))
    return tmp_path / "reduce.onnx"


@pytest.mark.parametrize("keep", [0.01, 0.25, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("method", METHODS)
def test_a_graph_computes_what_the_host_does(method, shape, keep, tmp_path):
    rng = np.random.default_rng([*shape, round(100 * keep)])
    grid, channels = shape[1:3], shape[3]
    # no two cosines so near each other that the order of sums decides
    features = rng.standard_normal((shape[0], grid[0] * grid[1], channels)).astype(np.float32)
    scores = rng.permutation(features[..., 0].size).reshape(features.shape[:2]).astype(np.float32)
    model = reducer_graph(method, grid=grid, channels=channels, keep=keep)
    path = saved(tmp_path, model)
    assert check_graph(path) == ()
    assert {opset.domain for opset in model.opset_import} == {""}
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Loop", "If", "Scan", "ScatterElements", "ScatterND", "NonZero"}
    made = OnnxReducer(path, grid=grid).reduce(features, scores)
    for graph, host in zip(made, reduce_tokens(method, features, grid=grid, keep=keep, scores=scores), strict=True):
        np.testing.assert_array_equal(graph.members, host.members)
        np.testing.assert_array_equal(graph.sizes, host.sizes)
        np.testing.assert_allclose(graph.features, host.features, rtol=1e-4, atol=1e-5)
        if method != "downsample":
            np.testing.assert_allclose(graph.positions, host.positions, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_zero_vectors_and_equal_tokens_keep_their_number(method, tmp_path):
    path = saved(tmp_path, reducer_graph(method, grid=(3, 4), channels=4, keep=0.5))
    reducer = OnnxReducer(path, grid=(3, 4))
    scores = np.zeros((2, 12), np.float32)
    for features in (np.zeros((2, 12, 4), np.float32), np.ones((2, 12, 4), np.float32)):
        for kept in reducer.reduce(features, scores):
            assert len(kept) == 6
            np.testing.assert_allclose(kept.features, features[0, :6], rtol=1e-6)
            assert (kept.sizes >= 1).all()


def test_rounds_are_part_of_the_graph(tmp_path):
    features = np.random.default_rng(4).standard_normal((2, 64, 8)).astype(np.float32)
    path = saved(tmp_path, reducer_graph("tome", grid=(8, 8), channels=8, keep=0.3, rounds=3))
    graph = OnnxReducer(path, grid=(8, 8)).reduce(features)
    host = reduce_tokens("tome", features, grid=(8, 8), keep=0.3, rounds=3)
    assert all(np.array_equal(a.members, b.members) for a, b in zip(graph, host, strict=True))


@pytest.mark.parametrize("method", ["tome", "divprune", "downsample"])
def test_behind_an_encoder_it_reduces_what_that_gives(method, tmp_path):
    graph = NANO / "vision/cpu/model.onnx"
    pixels = np.random.default_rng(1).uniform(-1, 1, (3, 3, 112, 112)).astype(np.float32)
    features = OnnxEncoder(graph, target="cpu", threads=1).encode(pixels)
    joined = follow(graph, reducer_graph(method, grid=(8, 8), channels=features.shape[2], keep=0.5))
    session = open_session(saved(tmp_path, joined), target="cpu", threads=1)
    kept, members = session.run(["kept_features", "members"], {"pixel_values": pixels})
    for view, host in enumerate(reduce_tokens(method, features, grid=(8, 8), keep=0.5)):
        np.testing.assert_array_equal(members[view], host.members)
        np.testing.assert_allclose(kept[view], host.features, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_landmarks_by_their_novelty_are_those_of_a_run(shape, tmp_path):
    grid, channels = shape[1:3], shape[3]
    features = np.random.default_rng(shape).standard_normal((shape[0], grid[0] * grid[1], channels)).astype(np.float32)
    scores = np.stack([saliency.novelty(view, grid=grid).reshape(-1) for view in features])
    path = saved(tmp_path, reducer_graph("landmark", grid=grid, channels=channels, keep=0.4, novelty=True))
    assert check_graph(path) == ()
    made = OnnxReducer(path, grid=grid).reduce(features)
    for graph, host in zip(made, reduce_tokens("landmark", features, grid=grid, keep=0.4, scores=scores), strict=True):
        np.testing.assert_array_equal(graph.members, host.members)
        np.testing.assert_allclose(graph.features, host.features, rtol=1e-4, atol=1e-5)


def test_landmarks_by_novelty_follow_an_encoder(tmp_path):
    graph = NANO / "vision/cpu/model.onnx"
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, 3, 112, 112)).astype(np.float32)
    features = OnnxEncoder(graph, target="cpu", threads=1).encode(pixels)
    scores = np.stack([saliency.novelty(view, grid=(8, 8)).reshape(-1) for view in features])
    reducer = reducer_graph("landmark", grid=(8, 8), channels=features.shape[2], keep=0.5, novelty=True)
    session = open_session(saved(tmp_path, follow(graph, reducer)), target="cpu", threads=1)
    kept, members = session.run(["kept_features", "members"], {"pixel_values": pixels})
    hosts = reduce_tokens("landmark", features, grid=(8, 8), keep=0.5, scores=scores)
    for view, host in enumerate(hosts):
        np.testing.assert_array_equal(members[view], host.members)
        np.testing.assert_allclose(kept[view], host.features, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_and_zero_tokens_are_not_novel(value, tmp_path):
    path = saved(tmp_path, reducer_graph("landmark", grid=(3, 4), channels=4, keep=0.5, novelty=True))
    features = np.full((1, 12, 4), value, np.float32)
    (kept,) = OnnxReducer(path, grid=(3, 4)).reduce(features)
    (host,) = reduce_tokens("landmark", features, grid=(3, 4), keep=0.5, scores=np.zeros((1, 12), np.float32))
    np.testing.assert_array_equal(kept.members, host.members)


def test_novelty_is_for_landmarks_alone():
    with pytest.raises(BadInput, match="tome chooses by no novelty"):
        reducer_graph("tome", grid=(2, 2), channels=2, keep=0.5, novelty=True)


def test_what_does_not_fit_an_encoder_is_refused():
    graph = NANO / "vision/cpu/model.onnx"
    with pytest.raises(BadInput, match=r"gives .* \[64, 256\] for each view; the reduction takes features \[16, 256\]"):
        follow(graph, reducer_graph("tome", grid=(4, 4), channels=256, keep=0.5))
    with pytest.raises(BadInput, match="features, scores"):
        follow(graph, reducer_graph("landmark", grid=(8, 8), channels=256, keep=0.5))


@pytest.mark.parametrize("method", ["threshold", "random", "cdpruner", "none"])
def test_methods_without_a_graph_are_refused_with_those_that_have_one(method):
    with pytest.raises(BadInput, match=f"{method} has no graph") as caught:
        reducer_graph(method, grid=(2, 2), channels=2, keep=0.5)
    assert "tome, divprune, landmark, visionzip, downsample" in caught.value.remedy


@pytest.mark.parametrize("keep", [0.0, 1.5, float("nan")])
def test_a_keep_out_of_range_is_refused(keep):
    with pytest.raises(BadInput, match="keep is"):
        reducer_graph("tome", grid=(2, 2), channels=2, keep=keep)


def test_features_and_scores_that_do_not_fit_are_refused(tmp_path):
    reducer = OnnxReducer(saved(tmp_path, reducer_graph("landmark", grid=(3, 4), channels=4, keep=0.5)), grid=(3, 4))
    features = patchy(0, (1, 3, 4, 4))
    with pytest.raises(BadInput, match="scores, and none is given"):
        reducer.reduce(features)
    with pytest.raises(BadInput, match="do not fill a grid"):
        reducer.reduce(features[:, :6], np.ones((1, 6), np.float32))
    assert set(TAKES_SCORES) == {"landmark", "visionzip"}

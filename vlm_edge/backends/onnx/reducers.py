"""Reductions to a fixed number of tokens as ONNX graphs that follow a vision encoder.

Standard operators only, and those that TensorRT takes: what is chosen becomes rows of ones and zeros, tokens are gathered and
summed by MatMul, TopK is sorted, nothing is scattered, nothing loops, and no shape depends on data. A view's grid, the number of
channels and the share that is kept are fixed; the number of views is not.

Which of tokens.REDUCERS there are: tome (round by round), divprune and landmark (one step for each token that is kept, written out
one after another), visionzip, downsample. Not: threshold, whose count depends on the data; random, whose choice is NumPy's;
cdpruner, which chooses by the question, while a graph behind the encoder serves all questions about an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.onnx.graph_builder import GraphBuilder, import_onnx
from vlm_edge.backends.onnx.reducer_steps import (
    FEATURES,
    SCORES,
    all_views,
    divprune_rows,
    landmark_rows,
    novelty_scores,
    tome_rows,
    visionzip_rows,
)
from vlm_edge.backends.onnx.session import open_session
from vlm_edge.core.reduction import kept_tokens
from vlm_edge.errors import BadInput
from vlm_edge.tokens.baselines import pooling
from vlm_edge.tokens.directions import check_scores
from vlm_edge.tokens.positions import DROPPED, TokenSet, check_features, check_fraction, grid_positions
from vlm_edge.tokens.tome import merge_schedule

KEPT, MEMBERS = "kept_features", "members"
PREFIX = "reduce/"
TAKES_SCORES: Mapping[str, str] = MappingProxyType({"landmark": "importance", "visionzip": "attention"})
"""Methods with a second input, float32 [V, P], and what it is; landmark with `novelty` has none."""
METHODS = ("tome", "divprune", "landmark", "visionzip", "downsample")
_BY_COUNT: Mapping[str, Callable[[GraphBuilder, int, int], str]] = MappingProxyType(
    {"divprune": divprune_rows, "landmark": landmark_rows, "visionzip": visionzip_rows}
)


def reducer_graph(
    method: str,
    *,
    grid: tuple[int, int],
    channels: int,
    keep: float,
    rounds: int | None = None,
    novelty: bool = False,
) -> Any:
    """An onnx.ModelProto: features float32 [V, P, D] (and scores [V, P]) -> kept_features [V, K, D], members int64 [V, P].

    K is kept_tokens(P, keep); tokens are in raster order of what each covers first, members as a TokenSet's.  rounds: of tome.
    novelty: landmark's importance is computed from the features, as `run` does, in place of a second input.
    Values are those of the NumPy reducers as far as float32 and its order of sums allow; features whose squares overflow
    float32 are not for a graph.
    Raises BadInput for a method that has no graph, a keep outside (0, 1] or too few rounds; MissingDependency without onnx.
    """
    check_fraction("keep", keep)
    if novelty and method != "landmark":
        raise BadInput(f"the reduction {method} chooses by no novelty", remedy="leave novelty out, or use landmark")
    if method not in METHODS:
        raise BadInput(
            f"the reduction {method} has no graph of a fixed number of tokens",
            remedy=f"use {', '.join(METHODS)} in a graph, or reduce on the host",
        )
    tokens = grid[0] * grid[1]
    count = kept_tokens(tokens, keep)
    build = GraphBuilder(PREFIX)
    if method == "downsample":
        weights, owners = pooling(grid, keep)
        count = len(weights)
        build.op("MatMul", build.constant(weights.astype(np.float32)), FEATURES, output=KEPT)
        whose = build.op("Unsqueeze", build.constant(owners.astype(np.int64)), build.integers(0))
        views = build.op("Slice", build.op("Shape", FEATURES), build.integers(0), build.integers(1))
        build.op("Expand", whose, build.op("Concat", views, build.integers(tokens), axis=0), output=MEMBERS)
    else:
        if count == tokens:
            rows = all_views(build, tokens)
        elif method == "tome":
            rows = tome_rows(build, tokens, merge_schedule(tokens, keep, rounds))
        elif novelty:
            rows = landmark_rows(build, tokens, count, novelty_scores(build, grid))
        else:
            rows = _BY_COUNT[method](build, tokens, count)
        sizes = build.op("ReduceSum", rows, build.integers(2), keepdims=1)
        build.op("Div", build.op("MatMul", rows, FEATURES), sizes, output=KEPT)
        covered = build.op("Greater", build.op("ReduceMax", rows, build.integers(1), keepdims=0), build.number(0.5))
        owner = build.op("ArgMax", rows, axis=1, keepdims=0)
        build.op("Where", covered, owner, build.constant(np.int64(DROPPED)), output=MEMBERS)
    scored = method in TAKES_SCORES and count < tokens and not novelty
    inputs = [(FEATURES, ("views", tokens, channels)), *([(SCORES, ("views", tokens))] if scored else [])]
    outputs = [(KEPT, np.float32, ("views", count, channels)), (MEMBERS, np.int64, ("views", tokens))]
    return build.model(f"{method}_{count}_of_{tokens}", inputs, outputs)


def follow(encoder: Path, reducer: Any) -> Any:
    """The encoder's graph with a reducer's behind it, as one onnx.ModelProto whose outputs are the reducer's.

    Weights that the encoder keeps in a file of their own are read in.  Raises BadInput when the reducer needs scores, or the
    encoder's output is not of its shape; MissingDependency without onnx.
    """
    onnx = import_onnx()
    from onnx.compose import merge_models

    model = onnx.load(str(encoder))
    output, inputs = model.graph.output[0], [value.name for value in reducer.graph.input]
    given, taken = (
        [size.dim_value for size in value.type.tensor_type.shape.dim] for value in (output, reducer.graph.input[0])
    )
    if inputs != [FEATURES] or given[1:] != taken[1:]:
        raise BadInput(
            f"{encoder} gives {output.name} {given[1:]} for each view; the reduction takes {', '.join(inputs)} {taken[1:]}",
            remedy="build a reduction of features alone (landmark: novelty=True), for this encoder's grid and channels",
        )
    behind = onnx.ModelProto()
    behind.CopyFrom(reducer)
    behind.ir_version = model.ir_version
    return merge_models(model, behind, io_map=[(output.name, FEATURES)])


class OnnxReducer:
    """Runs a reducer's graph by itself.  graph: a file that holds what reducer_graph() gives for this grid."""

    def __init__(self, graph: Path, *, grid: tuple[int, int], target: str = "cpu", threads: int = 1) -> None:
        self._session = open_session(graph, target=target, threads=threads)
        self._takes_scores = SCORES in [value.name for value in self._session.get_inputs()]
        self._grid = grid

    def reduce(self, features: NDArray[np.float32], scores: NDArray[np.float32] | None = None) -> tuple[TokenSet, ...]:
        """One TokenSet for each view of features float32 [V, P, D]; raises BadInput as reduce_tokens does.

        Positions are the means of those that a token covers; after `downsample` with pools that overlap, not quite their centres.
        """
        check_features(features, self._grid)
        inputs = {FEATURES: features}
        if self._takes_scores:
            inputs[SCORES] = check_scores("this graph", scores, features, "scores")
        kept, members = self._session.run([KEPT, MEMBERS], inputs)
        return tuple(_token_set(kept[view], members[view], self._grid, view) for view in range(len(features)))


def _token_set(features: NDArray[np.float32], members: NDArray[np.int64], grid: tuple[int, int], view: int) -> TokenSet:
    stays = members != DROPPED
    sizes = np.bincount(members[stays], minlength=len(features))
    places = np.zeros((len(features), 3))
    np.add.at(places, members[stays], grid_positions(grid, view)[stays])
    positions = (places / sizes[:, None]).astype(np.float32)
    return TokenSet(features, sizes.astype(np.int32), positions, members.astype(np.int32))

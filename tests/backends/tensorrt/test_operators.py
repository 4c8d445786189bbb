"""The published table, our exporters' graphs against it, and one handmade graph for each thing that it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.backends.tensorrt import graphs
from vlm_edge.backends.tensorrt import operator_table as table
from vlm_edge.backends.tensorrt.operators import check_graph, require_supported
from vlm_edge.errors import BadInput, CheckFailed

FLOAT, INT32, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL
X = {"x": (FLOAT, ["n", 4])}
node = helper.make_node


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def kinds(path: Path) -> list[str]:
    return [violation.kind for violation in check_graph(path)]


class TestTable:
    def test_it_names_every_operator_of_its_opsets_once(self) -> None:
        """Against the onnx package's own list: the table was copied by hand."""
        newest: dict[str, onnx.defs.OpSchema] = {}
        first: dict[str, int] = {}
        for schema in onnx.defs.get_all_schemas_with_history():
            if schema.domain == "":
                first[schema.name] = min(first.get(schema.name, 99), schema.since_version)
                if schema.since_version >= newest.get(schema.name, schema).since_version:
                    newest[schema.name] = schema
        known = {name for name, since in first.items() if since in range(1, table.OPSETS[-1] + 1)}
        # Experimental operators of ONNX's first releases, which the parser still reads.
        old = {"ImageScaler", "ParametricSoftplus", "ScaledTanh"}
        young = {"Swish"}  # of opset 24; the table of 10.15 leaves it out
        assert set(table.SUPPORTED) | table.UNSUPPORTED == (known | old) - young
        assert set(table.SUPPORTED) & table.UNSUPPORTED == set()

    @pytest.mark.parametrize(
        ("name", "types"),
        [
            ("Gelu", "FP32 FP16 BF16 INT8 INT32 INT64"),
            ("CumSum", "FP32 FP16 BF16"),
            ("TopK", "FP32 FP16 BF16 INT32 INT64"),
            ("LayerNormalization", "FP32 FP16 BF16"),
            ("Where", "FP32 FP16 BF16 INT32 INT64 BOOL"),
            ("Cast", "FP32 FP16 BF16 INT32 INT64 UINT8 BOOL"),
            ("Xor", "BOOL"),
        ],
    )
    def test_rows_as_published(self, name: str, types: str) -> None:
        assert table.SUPPORTED[name] == set(types.split())

    def test_rules_speak_of_supported_operators_and_attributes_that_exist(self) -> None:
        rules = {*table.CONSTANT_INPUTS, *table.SHAPE_INPUTS, *table.FIRST_OUTPUT_ONLY, *table.MOST_INPUTS}
        rules |= {*table.FOUR_DIMENSIONS, *table.ZERO_POINTS, *table.CONTROL_FLOW}
        assert rules <= set(table.SUPPORTED)
        for op, attribute in {*table.ALLOWED_VALUES, *table.ONES_ONLY}:
            assert attribute in onnx.defs.get_schema(op).attributes
        for op, positions in {**table.CONSTANT_INPUTS, **table.SHAPE_INPUTS, **table.FOUR_DIMENSIONS}.items():
            if op != "Upsample":  # no longer an operator
                assert max(positions) < len(onnx.defs.get_schema(op).inputs)


def tiny(tower: str):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    sizes = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    vision, strategy = {
        "clip": (transformers.CLIPVisionConfig, "default"),
        "siglip": (transformers.SiglipVisionConfig, "full"),
    }[tower]
    text = transformers.LlamaConfig(
        vocab_size=64, hidden_size=48, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4
    )
    config = transformers.LlavaConfig(
        vision_config=vision(**sizes), text_config=text, vision_feature_layer=-1,
        vision_feature_select_strategy=strategy, image_token_index=3,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlavaForConditionalGeneration(config).eval()


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_exported_encoders_pass(tower: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from vlm_edge.backends.onnx.export import export_encoder
    from vlm_edge.models.llava.components import VisionAndProjector

    pixels = np.random.default_rng(0).normal(size=(2, 3, 28, 28)).astype(np.float32)
    export_encoder(VisionAndProjector(tiny(tower)).eval(), pixels, tmp_path)
    graph = tmp_path / "model.onnx"
    assert check_graph(graph) == ()
    require_supported(graph)
    # The check had something to judge: every tensor that a node reads has a type.
    model = onnx.load(str(graph))
    typed = {v.name for v in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    typed |= {tensor.name for tensor in model.graph.initializer}
    assert {name for n in model.graph.node for name in n.input if name} <= typed


def test_the_handmade_encoder_passes(tmp_path: Path) -> None:
    assert check_graph(graphs.encoder(tmp_path / "model.onnx")) == ()


# Each line: the kinds of violation that are found, the nodes, and what they read beside x [n, 4].
REFUSED: dict[str, tuple[list[str], list[onnx.NodeProto], dict[str, np.ndarray]]] = {
    "no such operator": (["operator"], [node("Det", ["x"], ["y"])], {}),
    "operator unknown to the table": (["operator"], [node("Swish", ["x"], ["y"])], {}),
    "a fused operator": (["domain"], [node("BiasGelu", ["x", "b"], ["y"], domain="com.microsoft")], {"b": np.zeros(4, "f")}),
    "NonZero": (["shape from data"], [node("NonZero", ["x"], ["y"])], {}),
    "Unique": (["shape from data", "operator"], [node("Unique", ["x"], ["y"])], {}),
    "Compress": (["shape from data", "operator"], [node("Compress", ["x", "c"], ["y"])], {"c": np.ones(2, bool)}),
    "a sequence": (["operator"], [node("SequenceConstruct", ["x"], ["y"])], {}),
    "Reshape by data": (
        ["shape from data"],
        [node("ReduceMax", ["x"], ["m"], keepdims=0), node("Cast", ["m"], ["s"], to=INT64),
         node("Unsqueeze", ["s", "zero"], ["shape"]), node("Reshape", ["x", "shape"], ["y"])],
        {"zero": ints(0)},
    ),
    "Reshape at random": (
        ["shape from data"],
        [node("RandomUniform", [], ["r"], shape=[2]), node("Cast", ["r"], ["shape"], to=INT64),
         node("Reshape", ["x", "shape"], ["y"])],
        {},
    ),
    "Slice up to data": (
        ["shape from data"],
        [node("ReduceMax", ["x"], ["m"], keepdims=0), node("Cast", ["m"], ["s"], to=INT64),
         node("Unsqueeze", ["s", "zero"], ["end"]), node("Slice", ["x", "zero", "end"], ["y"])],
        {"zero": ints(0)},
    ),
    "K by data": (
        ["not constant"],
        [node("ReduceMax", ["x"], ["m"], keepdims=0), node("Cast", ["m"], ["s"], to=INT64),
         node("Unsqueeze", ["s", "zero"], ["k"]), node("TopK", ["x", "k"], ["y", "i"])],
        {"zero": ints(0)},
    ),
    "K by shape": (
        ["not constant"],
        [node("Shape", ["x"], ["shape"]), node("Slice", ["shape", "zero", "one"], ["k"]),
         node("TopK", ["x", "k"], ["y", "i"])],
        {"zero": ints(0), "one": ints(1)},
    ),
    "K too large": (["inputs"], [node("TopK", ["x", "k"], ["y", "i"])], {"k": ints(3840)}),
    "TopK unsorted": (["attribute"], [node("TopK", ["x", "k"], ["y", "i"], sorted=0)], {"k": ints(2)}),
    "axes by shape": (
        ["not constant"],
        [node("Shape", ["x"], ["shape"]), node("ReduceSum", ["x", "shape"], ["y"])],
        {},
    ),
    "scatter with a mean": (
        ["attribute"],
        [node("ScatterElements", ["x", "i", "x"], ["y"], reduction="add")],
        {"i": np.zeros((2, 4), np.int64)},
    ),
    "scatter of slices with a maximum": (
        ["attribute"],
        [node("ScatterND", ["x", "i", "u"], ["y"], reduction="max")],
        {"i": np.zeros((1, 1), np.int64), "u": np.zeros((1, 4), "f")},
    ),
    "Squeeze without axes": (["inputs"], [node("Squeeze", ["x"], ["y"])], {}),
    "Resize by cubic": (
        ["attribute", "attribute"],
        [node("Resize", ["x", "", "s"], ["y"], mode="cubic", antialias=1)],
        {"s": np.ones(2, "f")},
    ),
    "statistics of a norm": (
        ["outputs"],
        [node("LayerNormalization", ["x", "w"], ["y", "mean"])],
        {"w": np.ones(4, "f")},
    ),
    "a pool with holes": (["attribute"], [node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[1, 2])], {}),
    "zero point": (
        ["inputs"],
        [node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        {"q": np.ones(4, np.int8), "s": np.array(1, "f"), "z": np.array(3, np.int8)},
    ),
    "attention in three dimensions": (["inputs"], [node("Attention", ["x", "q", "q"], ["y"])], {"q": np.zeros((1, 1, 1, 4), "f")}),
    "attention with a cache": (
        ["inputs", "outputs"],
        [node("Attention", ["q", "q", "q", "", "q", "q"], ["y", "k", "v"])],
        {"q": np.zeros((1, 1, 1, 4), "f")},
    ),
    "a running sum of integers": (["type"], [node("CumSum", ["i", "zero"], ["y"])], {"i": ints(1, 2), "zero": ints(0)}),
    "doubles": (["type"], [node("Add", ["d", "d"], ["y"])], {"d": np.ones(2, np.float64)}),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_each_violation_is_found_and_named(case: str, tmp_path: Path) -> None:
    expected, nodes, constants = REFUSED[case]
    nodes[-1].name = "culprit"
    path = graphs.single(tmp_path / "m.onnx", nodes, inputs=X, constants=constants, domains=["com.microsoft"])
    found = check_graph(path)
    assert [violation.kind for violation in found] == expected
    assert {(violation.node, violation.op.rpartition(".")[2]) for violation in found} == {
        ("culprit", nodes[-1].op_type)
    }
    with pytest.raises(CheckFailed, match="node 'culprit'") as caught:
        require_supported(path)
    assert caught.value.exit_code == 1
    assert ("and 1 more" in caught.value.message) == (len(expected) == 2)


ACCEPTED: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray]]] = {
    "Reshape by the number of views": (
        [node("Shape", ["x"], ["shape"]), node("Slice", ["shape", "zero", "one"], ["n"]),
         node("Concat", ["n", "rest"], ["to"], axis=0), node("Reshape", ["x", "to"], ["y"])],
        {"zero": ints(0), "one": ints(1), "rest": ints(2, 2)},
    ),
    "Reshape by the number of values": (
        [node("Size", ["x"], ["s"]), node("Unsqueeze", ["s", "zero"], ["to"]), node("Reshape", ["x", "to"], ["y"])],
        {"zero": ints(0)},
    ),
    "Expand of a class token": (
        [node("Shape", ["x"], ["shape"]), node("Expand", ["token", "shape"], ["y"])],
        {"token": np.zeros((1, 4), "f")},
    ),
    "a constant K": ([node("TopK", ["x", "k"], ["y", "i"])], {"k": ints(3839)}),
    "a computed constant K": (
        [node("Add", ["one", "one"], ["k"]), node("TopK", ["x", "k"], ["y", "i"])],
        {"one": ints(1)},
    ),
    "K from a Constant node": (
        [node("Constant", [], ["k"], value=helper.make_tensor("v", INT64, [1], [2])), node("TopK", ["x", "k"], ["y", "i"])],
        {},
    ),
    "gathering by what was found in the data": (
        [node("TopK", ["x", "k"], ["v", "i"]), node("GatherElements", ["x", "i"], ["y"], axis=1)],
        {"k": ints(2)},
    ),
    "a scatter without a reduction": (
        [node("ScatterElements", ["x", "i", "x"], ["y"], reduction="none")],
        {"i": np.zeros((2, 4), np.int64)},
    ),
    "Resize by linear": ([node("Resize", ["x", "", "s"], ["y"], mode="linear")], {"s": np.ones(2, "f")}),
    "integers where they are listed": ([node("Mul", ["i", "i"], ["y"])], {"i": ints(1)}),
    "a symmetric scale": (
        [node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        {"q": np.ones(4, np.int8), "s": np.array(1, "f"), "z": np.array(0, np.int8)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_looks_alike_and_is_fine_passes(case: str, tmp_path: Path) -> None:
    nodes, constants = ACCEPTED[case]
    path = graphs.single(tmp_path / "m.onnx", nodes, inputs=X, constants=constants)
    assert check_graph(path) == ()
    require_supported(path)


def test_branches_and_loops_are_refused(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [node("Identity", ["x"], ["b"])], "b", [], [helper.make_tensor_value_info("b", FLOAT, None)]
    )
    nodes = [node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
    path = graphs.single(tmp_path / "m.onnx", nodes, inputs={**X, "c": (BOOL, [])})
    assert kinds(path) == ["control flow"]
    assert "the maker of y" in str(check_graph(path)[0])
    body = helper.make_graph(
        [node("Identity", ["c"], ["go"]), node("Identity", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("c", BOOL, []),
            helper.make_tensor_value_info("v", FLOAT, None),
        ],
        [helper.make_tensor_value_info("go", BOOL, []), helper.make_tensor_value_info("w", FLOAT, None)],
    )
    loop = [node("Loop", ["", "c", "x"], ["y"], body=body)]
    assert kinds(graphs.single(tmp_path / "m.onnx", loop, inputs={**X, "c": (BOOL, [])})) == ["control flow"]


@pytest.mark.parametrize(("opset", "expected"), [(8, ["opset"]), (9, []), (20, []), (24, []), (25, ["opset"])])
def test_opsets_outside_the_table_are_refused(opset: int, expected: list[str], tmp_path: Path) -> None:
    assert kinds(graphs.single(tmp_path / "m.onnx", [node("Relu", ["x"], ["y"])], inputs=X, opset=opset)) == expected


def test_values_of_a_graph_input_are_data_even_when_they_look_like_a_shape(tmp_path: Path) -> None:
    nodes = [node("Reshape", ["x", "to"], ["y"])]
    inputs = {**X, "to": (INT64, [2])}
    assert kinds(graphs.single(tmp_path / "m.onnx", nodes, inputs=inputs)) == ["shape from data"]


def test_functions_of_a_graphs_own_are_looked_into(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    inner = helper.make_function("own", "Outer", ["a"], ["b"], [node("NonZero", ["a"], ["b"])], opsets[:1])
    graph = helper.make_graph(
        [node("Outer", ["x"], ["y"], domain="own")],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 4])],
        [helper.make_empty_tensor_value_info("y")],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, functions=[inner], opset_imports=opsets, ir_version=10), str(path))
    assert kinds(path) == ["shape from data"]


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a"])
def test_other_files_are_bad_input(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="is not an ONNX model"):
        check_graph(path)


def test_a_missing_file_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        require_supported(tmp_path / "absent.onnx")

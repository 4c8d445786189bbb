"""Exports are compared with torch, a wrong one is not published, and every family comes through at every precision."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from vlm_edge.backends.onnx.runner import OnnxEncoder
from vlm_edge.errors import BadInput, CheckFailed

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

import onnx_ir as ir  # noqa: E402  # comes with onnxscript

from tests import exportable, tiny_vlms  # noqa: E402
from tests.backends.onnx.small_tower import SmallTower, copy_of, inputs, pixels, small_tower  # noqa: E402
from vlm_edge.backends.onnx import export  # noqa: E402
from vlm_edge.backends.onnx.export import Traced  # noqa: E402

FAMILY_SEEDS = ((0, 2), (1, 3), (3, 1), (4, 4))
"""(seed, views or images): other numbers and sizes than the two that were traced."""
SLOW = {"llava_next", "idefics3", "paligemma", "qwen2_vl", "idefics2"}
FAMILIES = [pytest.param(f, marks=[pytest.mark.slow] if f in SLOW else []) for f in tiny_vlms.FAMILIES]


@pytest.fixture(scope="module", autouse=True)
def traced_once() -> Iterator[None]:
    with exportable.exporting_once():
        yield


@pytest.fixture(scope="module")
def tower() -> SmallTower:
    return small_tower()


@pytest.fixture(scope="module")
def traced(tower: SmallTower) -> Traced:
    return export.trace(tower, inputs(), component="vision", ranges=True)


@pytest.fixture(scope="module")
def exported(traced: Traced, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tower")
    result = export.write(copy_of(traced), out, dtype="fp32", target="tensorrt")
    assert result.files == ("model.onnx",)
    assert result.inputs == ("pixel_values",)
    assert result.opset == 20
    return out / "model.onnx"


@pytest.mark.parametrize("views", [1, 2, 7, 8, 9, 17])
def test_the_graph_takes_any_number_of_views(tower: SmallTower, exported: Path, views: int) -> None:
    given = pixels(views, 1)["pixel_values"]
    with torch.no_grad():
        expected = tower(torch.from_numpy(given)).numpy()
    measured = OnnxEncoder(exported, target="cpu", threads=1).encode(given)
    np.testing.assert_allclose(measured, expected, rtol=1e-4, atol=1e-5)


def test_axes_are_named_and_the_opset_is_the_one_asked_for(exported: Path) -> None:
    graph = ir.load(exported)
    assert str(graph.graph.inputs[0].shape[0]) == "views"
    assert graph.graph.outputs[0].name == "image_features"
    assert graph.opset_imports[""] == 20


def test_a_graph_tells_nothing_of_the_machine_that_made_it(exported: Path) -> None:
    assert not re.search(rb"site-packages|\.py\b", exported.read_bytes())


def test_the_target_tensorrt_has_standard_operators_only(traced: Traced, tmp_path: Path) -> None:
    result = export.write(copy_of(traced), tmp_path, dtype="fp32", target="tensorrt")
    assert result.custom_ops == {}
    assert {node.domain for node in ir.load(tmp_path / "model.onnx").graph} == {""}


@pytest.mark.parametrize(("target", "ops"), [
    ("cpu", {"SkipLayerNormalization", "Attention", "BiasGelu"}),
    ("cuda", {"SkipLayerNormalization", "Attention", "BiasGelu"}),
])  # fmt: skip
def test_other_targets_have_fused_operators_and_equal_results(
    traced: Traced, exported: Path, tmp_path: Path, target: str, ops: set[str]
) -> None:
    result = export.write(copy_of(traced), tmp_path, dtype="fp32", target=target)
    assert ops <= {*result.custom_ops}
    given = pixels(5, 9)["pixel_values"]
    fused, plain = (OnnxEncoder(g, target="cpu", threads=1).encode(given) for g in (tmp_path / "model.onnx", exported))
    np.testing.assert_allclose(fused, plain, rtol=1e-4, atol=1e-5)


def test_large_graphs_keep_their_weights_beside_them(
    traced: Traced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "EXTERNAL_BYTES", 1000)
    result = export.write(copy_of(traced), tmp_path / "out", dtype="fp32", target="cpu")
    assert result.files == ("model.onnx", "model.onnx.data")
    assert (tmp_path / "out/model.onnx").stat().st_size < (tmp_path / "out/model.onnx.data").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_graph_that_differs_is_not_published_and_its_layer_is_named(traced: Traced, tmp_path: Path) -> None:
    wrong = copy_of(traced)
    bias = wrong.graph.graph.initializers["layers.1.fc1.bias"]
    bias.const_value = ir.tensor(bias.const_value.numpy() + np.float32(0.5), name=bias.name)
    with pytest.raises(CheckFailed, match=r"differs from torch.*begins at layers\.1\.fc1 "):
        export.write(wrong, tmp_path / "out", dtype="fp32", target="tensorrt")
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_finite_stop_the_run(exported: Path) -> None:
    broken = pixels(2, 0)["pixel_values"]
    broken[1, 0, 3, 3] = np.nan
    with pytest.raises(CheckFailed, match="not finite"):
        OnnxEncoder(exported, target="cpu", threads=1).encode(broken)


def test_one_view_cannot_be_traced_as_many(tower: SmallTower) -> None:
    with pytest.raises(BadInput, match="axis of size 1"):
        export.trace(tower, [pixels(1, 0)], component="vision")


@pytest.mark.parametrize(("dtype", "target"), [("fp8", "cpu"), ("fp32", "npu"), ("int8", "cuda")])
def test_what_cannot_be_exported_is_refused(traced: Traced, tmp_path: Path, dtype: str, target: str) -> None:
    with pytest.raises(BadInput):
        export.write(copy_of(traced), tmp_path, dtype=dtype, target=target)


def test_a_trace_is_written_once(traced: Traced, tmp_path: Path) -> None:
    once = copy_of(traced)
    export.write(once, tmp_path, dtype="fp32", target="tensorrt")
    with pytest.raises(ValueError, match="written already"):
        export.write(once, tmp_path, dtype="fp32", target="tensorrt")


def test_consumed_weights_are_freed_and_the_graph_is_right(tmp_path: Path) -> None:
    module = small_tower()
    given = pixels(2, 1)["pixel_values"]
    with torch.no_grad():
        expected = module(torch.from_numpy(given)).numpy()
    ours = [
        weight.detach() for weight in module.parameters()
    ]  # holds the memory, so that no other tensor takes its place
    places = {tensor.data_ptr() for tensor in ours}
    export.write(export.trace(module, inputs(), component="vision", consume=True), tmp_path, dtype="fp32", target="cpu")
    assert not [weight for weight in module.parameters() if weight.numel()]
    gc.collect()
    tensors = [value for value in gc.get_objects() if type(value) in (torch.Tensor, torch.nn.Parameter)]
    others = [tensor for tensor in tensors if not any(tensor is one for one in ours)]
    assert not places & {tensor.data_ptr() for tensor in others if tensor.numel()}
    measured = OnnxEncoder(tmp_path / "model.onnx", target="cpu", threads=1).encode(given)
    np.testing.assert_allclose(measured, expected, rtol=1e-4, atol=1e-5)


def test_a_module_of_one_input_needs_no_axes(tmp_path: Path) -> None:
    class Patches(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = torch.nn.Conv2d(3, 8, 4, stride=4)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.patch(pixel_values).flatten(2).transpose(1, 2)

    parity = export.export_encoder(Patches().eval(), pixels(3, 0)["pixel_values"], tmp_path)
    assert parity.ok
    assert parity.value < 1e-5


@pytest.fixture(scope="module")
def family_trace(request: pytest.FixtureRequest) -> Callable[[], Traced]:
    """The trace of the family that the test is parametrized with, made once."""
    name: str = request.param
    tiny = tiny_vlms.FAMILIES[name]
    model = tiny.model()
    module = tiny_vlms.component(name, model)
    given = [tiny_vlms.graph_inputs(tiny.arrays(model, seed, 2)) for seed in range(8)]
    made = export.trace(module, given, component=name, ranges=True)
    made.model = model  # type: ignore[attr-defined]  # for the references of further sizes
    return made


@pytest.mark.parametrize("family_trace", FAMILIES, indirect=True)
def test_every_family_at_every_precision(family_trace: Traced, tmp_path: Path) -> None:
    """In one test, so that a family is traced once: fp32 for each target, fp16 and int8, on sizes that were not traced."""
    tiny, model = tiny_vlms.FAMILIES[family_trace.component], family_trace.model
    given = [tiny.arrays(model, seed, count) for seed, count in FAMILY_SEEDS]
    with torch.no_grad():
        expected = [tiny.reference(model, arrays) for arrays in given]
    limits = {"fp32": 1e-5, "fp16": 5e-3, "int8": 4e-2}
    for dtype, target in (
        ("fp32", "tensorrt"),
        ("fp32", "cpu"),
        ("fp32", "cuda"),
        ("fp16", "tensorrt"),
        ("int8", "cpu"),
    ):
        out = tmp_path / f"{dtype}-{target}"
        result = export.write(copy_of(family_trace), out, dtype=dtype, target=target)
        assert result.parity.ok
        if target == "tensorrt":
            assert result.custom_ops == {}
        assert not {"Resize", "NonZero", "GatherND", "TopK"} & {
            node.op_type for node in ir.load(out / "model.onnx").graph
        }
        encoder = OnnxEncoder(out / "model.onnx", target="cpu", threads=1)
        for arrays, reference in zip(given, expected, strict=True):
            measured = encoder.encode(tiny_vlms.graph_inputs(arrays)).reshape(reference.shape)
            error = np.linalg.norm(measured - reference) / np.linalg.norm(reference)
            assert error < limits[dtype], (dtype, target)

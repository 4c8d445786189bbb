"""fp16 with and without its guard, 8-bit weights with and without outlier channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import onnx_ir as ir  # noqa: E402  # comes with onnxscript

from tests.backends.onnx.small_tower import (  # noqa: E402
    copy_of,
    inputs,
    pixels,
    small_tower,
    with_large_residual,
    with_outlier_channels,
)
from vlm_edge.backends.onnx import export, graph_passes, precision  # noqa: E402
from vlm_edge.backends.onnx.export import Traced  # noqa: E402
from vlm_edge.backends.onnx.observe import layer_absmax  # noqa: E402
from vlm_edge.backends.onnx.runner import OnnxEncoder  # noqa: E402
from vlm_edge.core import host  # noqa: E402
from vlm_edge.errors import BadInput, CheckFailed  # noqa: E402

FACTOR = 3e4
EXACT = pytest.mark.skipif(
    not host.exact_int8_products(), reason="this CPU, without VNNI, cuts off sums of 8-bit products"
)


@pytest.fixture(scope="module")
def plain() -> Traced:
    return export.trace(small_tower(), inputs(), component="vision", ranges=True)


@pytest.fixture(scope="module")
def overflowing() -> Traced:
    return export.trace(with_large_residual(FACTOR), inputs(), component="vision", ranges=True)


@pytest.fixture(scope="module")
def outliers() -> Traced:
    return export.trace(with_outlier_channels(small_tower()), inputs(), component="vision")


def test_the_large_residual_leaves_the_function_as_it_is() -> None:
    given = torch.from_numpy(pixels(3, 0)["pixel_values"])
    with torch.no_grad():
        torch.testing.assert_close(
            with_large_residual(FACTOR)(given), small_tower(eps=1e-12)(given), rtol=1e-3, atol=1e-3
        )


def test_ranges_see_scores_squares_and_sums(overflowing: Traced) -> None:
    """The residual's layers are over the limit, the projections inside them are not."""
    ranges = {layer.layer: layer for layer in precision.guard(overflowing.absmax)}
    assert ranges["patches"].absmax > FACTOR
    for name in ("patches", "layers.0", "layers.0.norm1", "layers.1.fc2", "norm"):
        assert ranges[name].dtype == "fp32", name
    for name in ("layers.0.query", "layers.1.fc1", "layers.1.act", "projector"):
        assert ranges[name].dtype == "fp16", name
    assert [layer.absmax for layer in precision.guard(overflowing.absmax)] == sorted(
        overflowing.absmax.values(), reverse=True
    )


def test_ranges_hold_what_hooks_on_outputs_would_see() -> None:
    """Against plain forward hooks, which see less."""
    tower, seen = small_tower(), {}
    for path, child in tower.named_modules():
        child.register_forward_hook(lambda _m, _a, out, path=path: seen.update({path: float(out.abs().max())}))
    given = inputs(1)
    absmax = layer_absmax(tower, given)
    assert seen
    assert all(absmax[path] >= value * 0.999 for path, value in seen.items())


def test_a_mask_is_no_activation() -> None:
    class Masked(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x + torch.tensor([0.0, torch.finfo(torch.float32).min])).softmax(-1)

    assert layer_absmax(Masked(), [{"x": np.float32([[1, 2]])}])[""] < 10


def test_naive_fp16_overflows_and_is_refused(overflowing: Traced, tmp_path: Path) -> None:
    naive = copy_of(overflowing)
    naive.absmax = {}
    with pytest.raises(CheckFailed, match="fp16 vision graph differs from torch") as caught:
        export.write(naive, tmp_path / "out", dtype="fp16", target="tensorrt")
    assert "--dtype fp32" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["tensorrt", "cuda"])
def test_guarded_fp16_passes_and_names_the_layers_that_keep_fp32(
    overflowing: Traced, tmp_path: Path, target: str
) -> None:
    result = export.write(copy_of(overflowing), tmp_path, dtype="fp16", target=target)
    assert result.parity.ok
    kept = {layer.layer for layer in result.ranges if layer.dtype == "fp32"}
    assert "layers.1" in kept
    assert "layers.1.fc1" not in kept
    graph = ir.load(tmp_path / "model.onnx").graph
    assert {value.dtype for value in (*graph.inputs, *graph.outputs)} == {ir.DataType.FLOAT}
    assert {ir.DataType.FLOAT16, ir.DataType.FLOAT} <= {value.dtype for value in graph.initializers.values()}


def test_without_large_values_all_weights_are_fp16(plain: Traced, tmp_path: Path) -> None:
    result = export.write(copy_of(plain), tmp_path, dtype="fp16", target="tensorrt")
    assert {layer.dtype for layer in result.ranges} == {"fp16"}
    weights = [v for v in ir.load(tmp_path / "model.onnx").graph.initializers.values() if v.const_value.size > 16]
    assert {value.dtype for value in weights} <= {ir.DataType.FLOAT16, ir.DataType.INT64}
    assert result.parity.relative_error < 5e-3


def test_angles_stay_in_fp32_before_their_cosine() -> None:
    """x -> cos(x * 300): the product must not be rounded to 11 bits."""
    graph = hand_made("Mul", "Cos", constant=np.float32([300]))
    precision.to_fp16(graph)
    assert [node.op_type for node in graph.graph] == ["Mul", "Cos"]
    assert graph.graph.node(0).outputs[0].dtype == ir.DataType.FLOAT


def hand_made(first: str, second: str, *, constant: np.ndarray) -> ir.Model:
    x = ir.Value(name="x", shape=ir.Shape(["n"]), type=ir.TensorType(ir.DataType.FLOAT))
    c = ir.Value(name="c", const_value=ir.tensor(constant), shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
    a, b = ir.node(first, [x, c]), None
    b = ir.node(second, [a.outputs[0]])
    for node in (a, b):
        node.outputs[0].shape, node.outputs[0].dtype = ir.Shape(["n"]), ir.DataType.FLOAT
    graph = ir.Graph([x], [b.outputs[0]], nodes=[a, b], initializers=[c], opset_imports={"": 20})
    return ir.Model(graph, ir_version=10)


def run(graph: ir.Model, path: Path, given: dict[str, np.ndarray]) -> np.ndarray:
    ir.save(graph, path)
    return OnnxEncoder(path, target="cpu", threads=1).encode(given)


@pytest.mark.parametrize("unsigned", [True, pytest.param(False, marks=EXACT)])
def test_dynamic_int8_rounds_by_output_channel(unsigned: bool, tmp_path: Path) -> None:
    """Against the formula, with a slow loop over channels."""
    random = np.random.default_rng(0)
    weight = (random.normal(size=(24, 10)) * np.geomspace(0.01, 10, 10)).astype(np.float32)
    given = random.normal(size=(4, 24)).astype(np.float32)  # one call's
    graph = product(weight)
    assert precision.weights_to_dynamic_int8(graph, unsigned=unsigned) == 1
    low, high = min(given.min(), 0), max(given.max(), 0)
    step = (high - low) / 255
    codes = np.clip(np.rint(given / step) + np.rint(-low / step), 0, 255) - np.rint(-low / step)
    expected = np.zeros((4, 10))
    for channel in range(10):
        scale = np.abs(weight[:, channel]).max() / 127
        expected[:, channel] = codes @ np.rint(weight[:, channel] / scale) * scale * step
    np.testing.assert_allclose(run(graph, tmp_path / "m.onnx", {"x": given}), expected, rtol=1e-4, atol=1e-5)


def product(weight: np.ndarray) -> ir.Model:
    x = ir.Value(name="x", shape=ir.Shape(["n", weight.shape[0]]), type=ir.TensorType(ir.DataType.FLOAT))
    w = ir.Value(
        name="w", const_value=ir.tensor(weight), shape=ir.Shape(weight.shape), type=ir.TensorType(ir.DataType.FLOAT)
    )
    node = ir.node("MatMul", [x, w])
    node.outputs[0].shape, node.outputs[0].dtype = ir.Shape(["n", weight.shape[1]]), ir.DataType.FLOAT
    graph = ir.Graph([x], [node.outputs[0]], nodes=[node], initializers=[w], opset_imports={"": 20})
    return ir.Model(graph, ir_version=10)


def test_unsigned_products_are_exact_at_their_largest(tmp_path: Path) -> None:
    """Codes at the ends of their range, where sums in 16 bits overflow: integers alone, so nothing may differ."""
    random = np.random.default_rng(4)
    weight = random.choice([-127, 127], (512, 48)).astype(np.float32)
    given = random.choice([0, 255], (9, 512)).astype(np.float32)
    graph = product(weight)
    precision.weights_to_dynamic_int8(graph, unsigned=True)
    np.testing.assert_array_equal(run(graph, tmp_path / "m.onnx", {"x": given}), given @ weight)


@pytest.mark.parametrize("rows", [20, 64, 97])
def test_nbits_weights_are_near_and_small(tmp_path: Path, rows: int) -> None:
    random = np.random.default_rng(1)
    weight, given = (random.normal(size=shape).astype(np.float32) for shape in ((rows, 48), (5, rows)))
    graph = product(weight)
    assert precision.weights_to_nbits(graph) == 1
    measured = run(graph, tmp_path / "m.onnx", {"x": given})
    assert np.linalg.norm(measured - given @ weight) / np.linalg.norm(given @ weight) < 0.015


def test_int8_tries_both_ways_and_says_why_it_kept_one(plain: Traced, tmp_path: Path) -> None:
    result = export.write(copy_of(plain), tmp_path, dtype="int8", target="cpu")
    tried = {"matmul_nbits", "dynamic" if host.exact_int8_products() else "dynamic_unsigned"}
    assert {candidate.scheme for candidate in result.candidates} == tried
    kept = next(candidate for candidate in result.candidates if candidate.scheme == result.scheme)
    near = [candidate.ms for candidate in result.candidates if candidate.relative_error <= export.INT8_AIM]
    assert kept.ms == min(near)
    assert f"{kept.ms:.2f} ms at" in result.why
    assert result.smoothed == ()
    assert result.parity.relative_error < 0.02


def test_a_cpu_that_cuts_off_sums_is_given_unsigned_products(
    plain: Traced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "exact_int8_products", lambda: False)
    result = export.write(copy_of(plain), tmp_path / "out", dtype="int8", target="cpu")
    assert {candidate.scheme for candidate in result.candidates} == {"matmul_nbits", "dynamic_unsigned"}
    for unsigned, name in ((True, "here"), (False, "elsewhere")):
        graph = product(np.ones((24, 10), np.float32))
        precision.weights_to_dynamic_int8(graph, unsigned=unsigned)
        ir.save(graph, tmp_path / f"{name}.onnx")
    assert OnnxEncoder(tmp_path / "here.onnx", target="cpu", threads=1).inputs == ("x",)
    with pytest.raises(BadInput, match="without VNNI"):
        OnnxEncoder(tmp_path / "elsewhere.onnx", target="cpu", threads=1)
    monkeypatch.setattr(host, "exact_int8_products", lambda: True)
    assert OnnxEncoder(tmp_path / "elsewhere.onnx", target="cpu", threads=1).inputs == ("x",)


def test_the_faster_way_is_not_kept_when_it_is_wrong(
    plain: Traced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ruin(graph: ir.Model) -> int:
        for value in graph.graph.initializers.values():
            if value.const_value.numpy().ndim == 2:
                value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.5), name=value.name)
        return 0

    right = precision.weights_to_nbits
    monkeypatch.setattr(precision, "INT8_SCHEMES", {"wrong": ruin, "right": right})
    monkeypatch.setattr(export, "_median_ms", lambda folder, *_: 1.0 if folder.name == "wrong" else 9.0)
    result = export.write(copy_of(plain), tmp_path / "out", dtype="int8", target="cpu")
    assert result.scheme == "right"
    assert "beyond the limits" in result.why
    monkeypatch.setattr(precision, "INT8_SCHEMES", {"wrong": ruin})
    with pytest.raises(CheckFailed, match="int8 vision graph differs"):
        export.write(copy_of(plain), tmp_path / "none", dtype="int8", target="cpu")
    assert not (tmp_path / "none").exists()


def test_outlier_channels_are_moved_into_the_weights(outliers: Traced, tmp_path: Path) -> None:
    """The function-preserving twin with channels 8 to 64 times larger: within 2% with smoothing, far beyond it without."""
    unsigned = not host.exact_int8_products()
    scheme = "dynamic_unsigned" if unsigned else "dynamic"
    result = export.write(copy_of(outliers), tmp_path / "smooth", dtype="int8", target="cpu")
    assert {*result.smoothed} == {f"layers.{layer}.norm{norm}" for layer in (0, 1) for norm in (1, 2)}
    smoothed = {candidate.scheme: candidate.relative_error for candidate in result.candidates}
    rough = copy_of(outliers)
    graph_passes.fold_weight_transposes(rough.graph)
    precision.weights_to_dynamic_int8(rough.graph, unsigned=unsigned)
    measured = run(rough.graph, tmp_path / "rough.onnx", outliers.inputs[0])
    expected = outliers.observation.outputs[0]
    error = np.linalg.norm(measured - expected) / np.linalg.norm(expected)
    assert smoothed[scheme] < 0.02
    assert error > 2 * smoothed[scheme]


def test_smoothing_alone_changes_nothing(outliers: Traced, tmp_path: Path) -> None:
    graph = copy_of(outliers).graph
    graph_passes.fold_weight_transposes(graph)
    graph_passes.gemms_to_matmuls(graph)
    assert len(precision.smooth(graph, outliers.observation.channel_absmax)) == 4
    measured = run(graph, tmp_path / "m.onnx", outliers.inputs[0])
    np.testing.assert_allclose(measured, outliers.observation.outputs[0], rtol=1e-4, atol=1e-5)

"""MatMulNBits' layout against a slow loop over its documentation, and against ONNX Runtime's own operator."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from vlm_edge.quant.nbits import Blocks, stacked, to_blocks, zero_points  # noqa: E402
from vlm_edge.quant.qparams import Scheme, quantize  # noqa: E402


def weight(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def slowly_read(blocks: Blocks) -> np.ndarray:
    """Every value by itself: code minus zero point, times scale."""
    per_byte = 8 // blocks.bits
    mask = (1 << blocks.bits) - 1
    found = np.zeros((blocks.outputs, blocks.inputs), np.float32)
    for row in range(blocks.outputs):
        for column in range(blocks.inputs):
            block, place = divmod(column, blocks.block)
            byte = int(blocks.weight[row, block, place // per_byte])
            code = byte >> (blocks.bits * (place % per_byte)) & mask
            zeros = int(zero_points(blocks)[row, block // per_byte])
            zero = zeros >> (blocks.bits * (block % per_byte)) & mask
            found[row, column] = (code - zero) * float(blocks.scales[row, block])
    return found


@pytest.mark.parametrize(("bits", "group", "columns"), [(4, 32, 96), (4, 128, 256), (8, 32, 64), (4, 64, 64)])
def test_the_layout_holds_what_was_quantized(bits: int, group: int, columns: int) -> None:
    quantized = quantize(weight(5, columns), Scheme(bits, group))
    blocks = to_blocks(quantized, bits)
    assert blocks.weight.shape == (5, columns // group, group * bits // 8)
    np.testing.assert_array_equal(slowly_read(blocks), quantized.dequantized().numpy())


@pytest.mark.parametrize("bits", [4, 8])
def test_onnx_runtime_multiplies_with_it(bits: int) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    quantized = quantize(weight(24, 96, 1), Scheme(bits, 32))
    blocks = to_blocks(quantized, bits)
    arrays = {"B": blocks.weight.numpy(), "s": blocks.scales.float().numpy(), "z": blocks.zero_points.numpy()}
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", *arrays], ["y"], domain="com.microsoft", K=96, N=24, bits=bits, block_size=32
    )
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "g", [value("x", 1, [None, 96])], [value("y", 1, [None, 24])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 22), onnx.helper.make_opsetid("com.microsoft", 1)]
    session = runtime.InferenceSession(
        onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    )
    x = np.random.default_rng(2).normal(size=(7, 96)).astype(np.float32)
    expected = x @ quantized.dequantized().numpy().T
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, atol=1e-4)


def test_rows_of_several_weights_are_one_weight() -> None:
    parts = [quantize(weight(rows, 64, rows), Scheme(4, 32)) for rows in (3, 5)]
    both = stacked([to_blocks(part) for part in parts])
    expected = torch.cat([part.dequantized() for part in parts]).numpy()
    np.testing.assert_array_equal(slowly_read(both), expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_middle_zero_points_are_left_out_until_others_join_them(bits: int) -> None:
    even = quantize(weight(3, 64), Scheme(bits, 32, symmetric=True))
    uneven = quantize(weight(2, 64, 9).abs(), Scheme(bits, 32))
    blocks = [to_blocks(one, bits) for one in (even, uneven)]
    assert blocks[0].zero_points is None
    assert stacked(blocks[:1] * 2).zero_points is None
    np.testing.assert_array_equal(slowly_read(blocks[0]), even.dequantized().numpy())
    expected = torch.cat([even.dequantized(), uneven.dequantized()]).numpy()
    np.testing.assert_array_equal(slowly_read(stacked(blocks)), expected)


def test_weights_that_are_cut_differently_are_not_stacked() -> None:
    with pytest.raises(ValueError, match="cannot be stacked"):
        stacked([to_blocks(quantize(weight(2, 64), Scheme(4, size))) for size in (32, 64)])


def test_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="4 or 8 bits"):
        to_blocks(quantize(weight(2, 64), Scheme(3, 32)), 3)

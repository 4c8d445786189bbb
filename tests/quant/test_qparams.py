"""Rounding of groups against arithmetic written out in loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_edge.quant.qparams import BITS, GROUP_SIZES, Scheme, group_sizes_for, quantize, rounded

SCHEMES = [Scheme(bits, size, symmetric) for bits in BITS for size in (32, 128) for symmetric in (False, True)]


def weights(seed: int, rows: int = 6, columns: int = 256) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator)


def slowly(weight: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales and zeros, one number after the other, in float32 with scales that float16 holds."""
    rows, columns = weight.shape
    groups = columns // scheme.group_size
    codes, scales, zeros = (
        np.zeros((rows, columns), int),
        np.zeros((rows, groups), np.float16),
        np.zeros((rows, groups), int),
    )
    top, half = 2**scheme.bits - 1, 2 ** (scheme.bits - 1)
    for row in range(rows):
        for group in range(groups):
            part = weight[row, group * scheme.group_size : (group + 1) * scheme.group_size]
            if scheme.symmetric:
                scale = np.float16(max(np.float32(abs(part).max()), np.float32(1e-5)) / np.float32(half - 1))
                zero = half
            else:
                low, high = min(part.min(), np.float32(0)), max(part.max(), np.float32(0))
                scale = np.float16(max(high - low, np.float32(1e-5)) / np.float32(top))
                zero = int(min(max(-np.rint(low / np.float32(scale)), 0), top))
            scales[row, group], zeros[row, group] = scale, zero
            for i, value in enumerate(part):
                code = np.rint(value / np.float32(scale)) + zero
                codes[row, group * scheme.group_size + i] = int(min(max(code, 0), top))
    return codes, scales, zeros


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_codes_scales_and_zeros_are_those_of_a_slow_loop(scheme: Scheme) -> None:
    weight = weights(1)
    found = quantize(weight, scheme)
    codes, scales, zeros = slowly(weight.numpy(), scheme)
    assert (found.codes.numpy() == codes).all()
    assert (found.scale.numpy() == scales).all()
    assert (found.zero.numpy() == zeros).all()
    expected = (codes - zeros.repeat(scheme.group_size, 1)) * scales.astype(np.float64).repeat(scheme.group_size, 1)
    assert (found.dequantized().double().numpy() == expected).all()  # exact: 4 bits times 11 fit into float32


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_search_s_inner_step_is_the_same_rounding(scheme: Scheme) -> None:
    weight = weights(2)
    assert torch.equal(rounded(weight, scheme), quantize(weight, scheme).dequantized())


@given(st.integers(0, 10_000), st.sampled_from(SCHEMES), st.floats(1e-4, 1e3))
@settings(max_examples=60, deadline=None)
def test_no_weight_moves_by_more_than_a_step(seed: int, scheme: Scheme, size: float) -> None:
    weight = weights(seed, 3) * size
    found = quantize(weight, scheme)
    step = found.scale.float().repeat_interleave(scheme.group_size, 1)
    # Half a step, or up to a whole one at the upper end, where the zero point's own rounding may have moved the range; the
    # scale's rounding to float16 adds up to top * 2^-11 of a step, and below float16's normal numbers half of 2^-24.
    slack = scheme.top * (2**-11 + 2**-25 / found.scale.float().min())
    assert ((found.dequantized() - weight).abs() <= step * (1 + slack)).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_group_of_one_sign_keeps_its_values(sign: int) -> None:
    weight = sign * (1 + torch.rand(2, 64, generator=torch.Generator().manual_seed(0)) / 10)
    found = quantize(weight, Scheme(group_size=32)).dequantized()
    assert ((found - weight).abs() < 1.1 / 15).all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_zeros_stay_zeros(symmetric: bool) -> None:
    found = quantize(torch.zeros(2, 64), Scheme(group_size=32, symmetric=symmetric))
    assert (found.dequantized() == 0).all()
    assert (found.scale > 0).all()


def test_fewer_bits_lose_more() -> None:
    weight = weights(3, 64)
    errors = [float((rounded(weight, Scheme(bits)) - weight).square().mean()) for bits in BITS]
    assert errors[0] * 3 < errors[1] < errors[2] / 3


@pytest.mark.parametrize(("width", "sizes"), [(256, GROUP_SIZES), (192, (64, 32)), (96, (32,)), (60, ())])
def test_group_sizes_that_divide_a_width(width: int, sizes: tuple[int, ...]) -> None:
    assert group_sizes_for(width) == sizes

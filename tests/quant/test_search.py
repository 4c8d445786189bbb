"""The two searches against loops that do what their formulas say, one value at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.quant.test_qparams import slowly
from vlm_edge.quant.qparams import Scheme
from vlm_edge.quant.search import (
    RATIOS,
    clipped,
    linear_loss,
    module_loss,
    replaced,
    scales_for,
    search_clip,
    search_scales,
    weight_importance,
)

SCHEME = Scheme(group_size=32)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outlying(seed: int, tokens: int, width: int) -> torch.Tensor:
    """Activations with a few channels far above the rest."""
    rows = random(seed, tokens, width)
    rows[:, ::13] *= 30
    return rows


def round_slowly(weight: np.ndarray, scheme: Scheme) -> np.ndarray:
    codes, scales, zeros = slowly(weight, scheme)
    size = scheme.group_size
    return (codes - zeros.repeat(size, 1)) * scales.astype(np.float64).repeat(size, 1)


def test_weight_importance_is_the_mean_share_of_a_group() -> None:
    weights = [random(0, 3, 64), random(1, 5, 64)]
    expected = np.zeros(64)
    for column in range(64):
        shares = []
        for weight in weights:
            for row in weight.numpy():
                group = row[column // 32 * 32 : column // 32 * 32 + 32]
                shares.append(abs(row[column]) / (abs(group).max() + 1e-6))
        expected[column] = np.mean(shares)
    np.testing.assert_allclose(weight_importance(weights, 32).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("ratio", [0.0, 0.35, 0.95])
def test_scales_follow_their_formula(ratio: float) -> None:
    x, w = random(2, 16).abs().numpy(), random(3, 16).abs().numpy()
    expected = np.array([max(x[i] ** ratio / (w[i] ** (1 - ratio) + 1e-4), 1e-4) for i in range(16)])
    expected /= np.sqrt(expected.max() * expected.min())
    np.testing.assert_allclose(scales_for(ratio, torch.from_numpy(x), torch.from_numpy(w)).numpy(), expected, rtol=1e-5)


def test_a_channel_that_is_never_active_gets_a_usable_scale() -> None:
    x = torch.tensor([0.0, 1.0, 2.0])
    for ratio in RATIOS:
        found = scales_for(ratio, x, torch.tensor([0.5, 0.0, 0.5]))
        assert (found > 0).all()
        assert found.isfinite().all()


def test_the_scale_search_finds_what_a_slow_grid_finds() -> None:
    linear = nn.Linear(64, 24, bias=False)
    linear.weight.data = random(4, 24, 64)
    rows = outlying(5, 40, 64)
    x_mean, weight = rows.abs().mean(0), linear.weight.data
    w_mean = weight_importance([weight], 32)
    reference = rows.double().numpy() @ weight.double().numpy().T
    errors = {None: np.mean((rows.double().numpy() @ round_slowly(weight.numpy(), SCHEME).T - reference) ** 2)}
    for ratio in RATIOS:
        scales = scales_for(ratio, x_mean, w_mean)
        moved = round_slowly((weight * scales).numpy(), SCHEME) / scales.double().numpy()
        errors[ratio] = np.mean((rows.double().numpy() @ moved.T - reference) ** 2)
    with torch.no_grad():
        found = search_scales({"a": linear}, x_mean, linear_loss("a", weight, rows), SCHEME)
    assert found.ratio == min(errors, key=lambda ratio: errors[ratio])
    assert found.ratio is not None
    assert found.loss == pytest.approx(errors[found.ratio], rel=1e-4)
    assert found.plain_loss == pytest.approx(errors[None], rel=1e-4)
    assert found.loss < found.plain_loss / 2


def test_weights_that_round_exactly_are_left_alone() -> None:
    linear = nn.Linear(32, 4, bias=False)
    linear.weight.data = torch.arange(-7.0, 9.0).repeat(4, 2)
    with torch.no_grad():
        rows = random(6, 8, 32)
        found = search_scales({"a": linear}, rows.abs().mean(0), linear_loss("a", linear.weight.data, rows), SCHEME)
    assert found.ratio is None
    assert found.plain_loss == 0
    assert torch.equal(found.scales, torch.ones(32))


def test_a_module_is_judged_on_its_output_and_left_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 8))
    given = [random(7, 5, 32), random(8, 3, 32)]
    other = random(9, 32, 32)
    with torch.no_grad():
        own = {"0": module[0]}
        before, kept = [module(x) for x in given], module[0].weight.clone()
        found = module_loss(own, lambda: (module(x) for x in given))({"0": other})
        assert torch.equal(module[0].weight, kept)
        with replaced(own, {"0": other}):
            errors = torch.cat([(module(x) - y).square().flatten() for x, y in zip(given, before, strict=True)])
    assert found == pytest.approx(float(errors.mean()), rel=1e-5)


@pytest.mark.parametrize(
    "scheme", [SCHEME, Scheme(bits=2, group_size=32), Scheme(group_size=32, symmetric=True)], ids=str
)
def test_the_clip_search_finds_what_a_slow_grid_finds(scheme: Scheme) -> None:
    weight, rows = random(10, 6, 64), outlying(11, 50, 64)
    weight[::2, 5] *= 6  # one outlier, which costs its whole group
    grouped = rows.view(50, 2, 32).transpose(0, 1)
    gram = grouped.transpose(1, 2) @ grouped / 50
    found = search_clip(weight, gram, scheme)
    x = rows.double().numpy()
    for row in range(6):
        for group in range(2):
            part = slice(32 * group, 32 * group + 32)
            own = weight[row, part].numpy()
            largest, errors = abs(own).max(), []
            limits = [np.float32(largest) * np.float32(1 - i / 20) for i in range(10)]
            for limit in limits:
                changed = round_slowly(own.clip(-limit, limit)[None], scheme)[0]
                errors.append(np.mean((x[:, part] @ (changed - own)) ** 2))
            chosen = int(np.argmin(errors))
            near = [limit for limit, error in zip(limits, errors, strict=True) if error <= errors[chosen] * (1 + 1e-4)]
            assert float(found[row, group]) in [pytest.approx(float(limit)) for limit in near]
    assert (found < weight.view(6, 2, 32).abs().amax(-1)).any()


def test_clipping_cuts_each_group_at_its_own_limit() -> None:
    weight = random(12, 3, 64)
    limit = torch.tensor([[0.5, 9.0]] * 3)
    found = clipped(weight, limit)
    assert torch.equal(found[:, :32], weight[:, :32].clamp(-0.5, 0.5))
    assert torch.equal(found[:, 32:], weight[:, 32:])

"""Paired intervals: the formula by another road, coverage by simulation, the bootstrap by a slow loop."""

from __future__ import annotations

import math
import random
from statistics import fmean, quantiles

import numpy as np
import pytest

from vlm_edge.errors import BadInput
from vlm_edge.pipeline.evaluating.metrics import RowOutcome, wilson
from vlm_edge.pipeline.evaluating.paired import bootstrap, difference, newcombe


def outcome(row: str, *, right: bool, image: str = "page.png") -> RowOutcome:
    return RowOutcome(f"id-{row}", row, image, "?", "value", (), "1", right=right)


def outcomes(rights: str, *, per_image: int = 1) -> list[RowOutcome]:
    return [outcome(f"r{i}", right=c == "1", image=f"{i // per_image}.png") for i, c in enumerate(rights)]


def test_without_correlation_it_is_the_interval_of_independent_shares() -> None:
    # 25 of 50 and 35 of 50, put together so that phi is 0 but for the correction: both 17, only a 8, only b 18, neither 7
    low, high = newcombe(17, 8, 18, 7)
    (low_a, high_a), (low_b, high_b) = wilson(25, 50), wilson(35, 50)
    phi = (17 * 7 - 8 * 18) / math.sqrt(25 * 25 * 35 * 15)
    assert phi < 0  # no correction on that side

    def joined(one: float, other: float) -> float:  # the law of cosines, with the angle whose cosine is phi
        a, b = complex(one), other * complex(phi, math.sqrt(1 - phi * phi))
        return abs(a - b)

    assert low == pytest.approx(0.2 - joined(0.7 - low_b, high_a - 0.5))
    assert high == pytest.approx(0.2 + joined(high_b - 0.7, 0.5 - low_a))


def test_agreement_narrows_the_interval_and_the_correction_keeps_it_open() -> None:
    independent, alike = newcombe(20, 10, 10, 10), newcombe(29, 1, 1, 19)
    assert alike[1] - alike[0] < 0.6 * (independent[1] - independent[0])
    low, high = newcombe(25, 0, 0, 25)
    assert low < -0.01
    assert high > 0.01
    assert newcombe(0, 0, 0, 0) == (-1.0, 1.0)
    assert newcombe(3, 0, 0, 0)[0] < -0.5  # three rows prove nothing


def test_runs_change_places_and_signs() -> None:
    low, high = newcombe(30, 12, 5, 9)
    assert newcombe(30, 5, 12, 9) == pytest.approx((-high, -low))


@pytest.mark.parametrize("cells", [(0.6, 0.1, 0.05, 0.25), (0.85, 0.02, 0.03, 0.1), (0.3, 0.2, 0.2, 0.3)])
def test_the_true_difference_lies_inside_as_often_as_promised(cells: tuple[float, ...]) -> None:
    truth = cells[2] - cells[1]
    draws = np.random.default_rng(5).multinomial(80, cells, 2000)
    held = [low <= truth <= high for low, high in (newcombe(*map(int, draw)) for draw in draws)]
    assert 0.935 <= fmean(held) <= 0.995


def test_many_rows_give_the_textbook_standard_error() -> None:
    both, only_a, only_b, neither = 30_000, 4_000, 3_000, 13_000
    n = both + only_a + only_b + neither
    low, high = newcombe(both, only_a, only_b, neither)
    error = math.sqrt(only_a + only_b - (only_b - only_a) ** 2 / n) / n
    assert (high - low) / 2 == pytest.approx(1.959964 * error, rel=0.02)


def test_whole_clusters_are_drawn() -> None:
    clusters = [0, 0, 0, 1, 2, 2, 3, 3, 3, 3]
    values = [1.0, 1, 1, 0, 0, -1, 0, 0, 1, 0]
    rng, means = random.Random(1), []
    for _ in range(20_000):
        picked = [
            value for c in rng.choices(range(4), k=4) for value, own in zip(values, clusters, strict=True) if own == c
        ]
        means.append(fmean(picked))
    cuts = quantiles(means, n=40)
    assert bootstrap(np.array(values), np.array(clusters)) == pytest.approx((cuts[0], cuts[-1]), abs=0.06)


def test_rows_about_one_image_count_for_less_than_as_many_images() -> None:
    a, b = "1" * 40, "0" * 10 + "1" * 30
    apart, together = (
        difference(outcomes(a), outcomes(b)),
        difference(outcomes(a, per_image=10), outcomes(b, per_image=10)),
    )
    assert apart.mean == together.mean == -0.25
    assert (apart.only_a, apart.only_b, apart.n) == (10, 0, 40)
    assert together.high - together.low > 1.3 * (apart.high - apart.low)
    low, high = newcombe(30, 10, 0, 0)
    assert apart.low <= low < high <= apart.high


def test_json_has_shares() -> None:
    told = difference(outcomes("1100"), outcomes("1010")).to_json()
    assert {name: told[name] for name in ("n", "only_a", "only_b", "mean")} == {
        "n": 4,
        "only_a": 1,
        "only_b": 1,
        "mean": 0,
    }
    assert told["interval_95"][0] < 0 < told["interval_95"][1]


def test_other_rows_are_refused() -> None:
    with pytest.raises(BadInput, match="not over the same rows"):
        difference(outcomes("10"), outcomes("101"))
    assert difference([], []).low == -1

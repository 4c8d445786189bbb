"""Bootstrap intervals against a slow loop, and against what is known of means."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import paired
from benchmarks.paired import Resamples


@pytest.fixture
def pages() -> list[int]:
    """30 pages with 1 to 5 questions."""
    return [page for page in range(30) for _ in range(1 + page % 5)]


def test_draws_are_of_whole_pages(pages: list[int]) -> None:
    random = np.random.default_rng(1)
    values = random.normal(size=len(pages))
    chosen = random.random(len(pages)) < 0.5
    weights = np.random.default_rng(paired.SEED).multinomial(30, np.full(30, 1 / 30), paired.RESAMPLES)
    found, some = Resamples(pages).means(values), Resamples(pages).means(values, chosen)
    for draw in range(0, paired.RESAMPLES, 400):
        drawn = [i for i, page in enumerate(pages) for _ in range(weights[draw, page])]
        assert found[draw] == pytest.approx(values[drawn].mean())
        assert some[draw] == pytest.approx(values[[i for i in drawn if chosen[i]]].mean())


def test_the_interval_of_independent_values_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(2).normal(size=2000)
    found = Resamples(range(2000)).estimate(values)
    half = 1.96 * values.std() / 2000**0.5
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_questions_of_one_page_count_as_one_where_they_agree() -> None:
    """Ten equal copies of each value say no more than one."""
    values = np.random.default_rng(3).normal(size=200)
    once = Resamples(range(200)).estimate(values)
    copies = Resamples([page for page in range(200) for _ in range(10)]).estimate(np.repeat(values, 10))
    assert copies.high - copies.low == pytest.approx(once.high - once.low, rel=1e-6)


def test_differences_are_paired(pages: list[int]) -> None:
    random = np.random.default_rng(4)
    first = random.normal(size=len(pages))
    second = first + 0.5
    found = Resamples(pages).estimate(second - first)
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert Resamples(pages).ratio(2 * np.abs(first), np.abs(first)).low == pytest.approx(2)


def test_draws_without_any_of_the_chosen_are_left_out() -> None:
    chosen = np.array([True, False, False])
    found = Resamples([0, 1, 2]).estimate(np.array([4.0, 1.0, 1.0]), chosen)
    assert (found.mean, found.low, found.high) == (4.0, 4.0, 4.0)

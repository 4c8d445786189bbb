"""Sampling against a softmax worked out with Python's own floats, and draws against its probabilities."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_edge.errors import CheckFailed
from vlm_edge.pipeline.answering.sampling import choose

DRAWS = 6_000
INF = float("inf")


def slow_probabilities(logits: list[float], temperature: float, top_p: float) -> dict[int, float]:
    """Token -> probability, by the definition: sort, add up until top_p is reached, share out the rest."""
    weights = [math.exp((value - max(logits)) / temperature) for value in logits]
    shares = [(weight / math.fsum(weights), -token) for token, weight in enumerate(weights)]
    kept: dict[int, float] = {}
    for share, negative in sorted(shares, reverse=True):
        kept[-negative] = share
        if math.fsum(kept.values()) >= top_p:
            break
    return {token: share / math.fsum(kept.values()) for token, share in kept.items()}


def draw(logits: list[float], temperature: float, top_p: float, seed: int = 0) -> int:
    rng = np.random.default_rng(seed)
    return choose(np.array(logits, np.float32), temperature=temperature, top_p=top_p, rng=rng)


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (3.0, 1.0), (1.0, 0.8), (1.0, 0.5), (2.0, 0.9)]
)
def test_tokens_come_as_often_as_their_probability_says(temperature: float, top_p: float) -> None:
    logits = [2.0, 1.0, 0.5, -1.0, 1.5, -4.0]
    expected = slow_probabilities(logits, temperature, top_p)
    rng, table = np.random.default_rng(1), np.array(logits, np.float32)
    seen = Counter(choose(table, temperature=temperature, top_p=top_p, rng=rng) for _ in range(DRAWS))
    assert set(seen) <= set(expected)
    # Pearson's chi squared; 5 degrees of freedom or fewer: 25.7 is passed once in 10,000
    chi2 = sum((seen[token] - DRAWS * p) ** 2 / (DRAWS * p) for token, p in expected.items())
    assert chi2 < 25.7


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12),
    st.floats(0.05, 20),
    st.floats(0.01, 1),
    st.integers(0, 2**32 - 1),
)
def test_only_tokens_of_the_smallest_sufficient_set_come(
    logits: list[float], temperature: float, top_p: float, seed: int
) -> None:
    # a little more room than asked for: sums in another order may fall just short
    allowed = slow_probabilities(logits, temperature, min(1.0, top_p + 1e-9))
    assert draw(logits, temperature, top_p, seed) in allowed


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=20))
def test_temperature_zero_takes_the_first_of_the_largest(logits: list[float]) -> None:
    assert draw(logits, 0.0, 1.0) == logits.index(max(logits))


def test_a_tiny_top_p_is_greedy() -> None:
    assert {draw([1.0, 3.0, 2.0], 5.0, 1e-9, seed) for seed in range(50)} == {1}


@pytest.mark.parametrize("temperature", [1e-320, 1e-40, 1e-6])
def test_a_tiny_temperature_is_greedy_without_a_warning(temperature: float) -> None:
    assert draw([1.0, 3.0, 2.9], temperature, 1.0) == 1


def test_a_huge_temperature_is_uniform() -> None:
    rng, table = np.random.default_rng(0), np.array([-50.0, 50.0, 0.0, 7.0], np.float32)
    seen = Counter(choose(table, temperature=1e12, top_p=1.0, rng=rng) for _ in range(4000))
    assert min(seen.values()) > 850
    assert len(seen) == 4


def test_the_same_seed_draws_the_same() -> None:
    logits = list(np.random.default_rng(0).normal(size=100))
    assert [draw(logits, 1.0, 0.9, seed) for seed in range(20)] == [draw(logits, 1.0, 0.9, seed) for seed in range(20)]


def test_excluded_tokens_never_come() -> None:
    assert {draw([-INF, 1.0, -INF, 1.0], 100.0, 1.0, seed) for seed in range(60)} == {1, 3}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logits", [[1.0, math.nan], [math.nan, 1.0], [INF, 1.0], [-INF, -INF], [math.nan] * 3])
def test_logits_that_are_not_finite_are_an_error_and_no_token(logits: list[float], temperature: float) -> None:
    with pytest.raises(CheckFailed, match="not finite"):
        draw(logits, temperature, 1.0)


def test_large_logits_do_not_overflow() -> None:
    assert draw([3e38, -3e38, 2.9e38], 1.0, 1.0) == 0

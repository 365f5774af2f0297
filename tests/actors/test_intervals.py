"""Intervals of rates and means: where they lie, what they cover, what moves them."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors import intervals
from actors.intervals import Estimate, mean_of, rate_of

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.integers(1, 2_000), st.data())
def test_a_rate_lies_in_its_interval_within_0_and_1(n, data):
    k = data.draw(st.integers(0, n))
    rate = rate_of(k, n)
    assert rate.value == k / n
    assert 0.0 <= rate.low <= rate.value <= rate.high <= 1.0
    mirrored = rate_of(n - k, n)
    assert math.isclose(mirrored.low, 1 - rate.high, abs_tol=1e-12)
    doubled = rate_of(2 * k, 2 * n)
    assert doubled.high - doubled.low < rate.high - rate.low


def test_known_rates():
    # Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for k, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        rate = rate_of(k, n)
        assert (rate.low, rate.high) == (
            pytest.approx(low, abs=1e-4),
            pytest.approx(high, abs=1e-4),
        )


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
def test_a_rate_is_covered_about_95_times_in_100(p):
    """Exactly, over all outcomes of 20 trials: Wilson's coverage there lies in 0.92..0.99."""
    n = 20
    covered = sum(
        math.comb(n, k) * p**k * (1 - p) ** (n - k)
        for k in range(n + 1)
        if rate_of(k, n).low <= p <= rate_of(k, n).high
    )
    assert 0.92 <= covered <= 0.995


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 3), (4, 3)])
def test_what_is_no_rate_is_refused(k, n):
    with pytest.raises(ValueError, match="make no rate"):
        rate_of(k, n)


@settings(max_examples=30)
@given(st.lists(FINITE, min_size=2, max_size=12), st.floats(-1e3, 1e3))
def test_a_mean_lies_in_its_interval_and_moves_with_its_values(values, shift):
    mean = mean_of(values)
    slack = 1e-9 * max(1.0, *map(abs, values))
    assert min(values) - slack <= mean.low <= mean.value <= mean.high <= max(values) + slack
    moved = mean_of([v + shift for v in values])
    for before, after in ((mean.low, moved.low), (mean.high, moved.high)):
        assert math.isclose(before + shift, after, rel_tol=1e-9, abs_tol=1e-6)


def test_a_mean_is_covered_about_95_times_in_100():
    """300 samples of 30 normal values: the bootstrap's coverage is 0.93, its error below 0.045
    (three standard errors of a share of 300).
    """
    rng = np.random.default_rng(0)
    intervals = [mean_of(rng.normal(2.0, 1.0, 30).tolist(), seed) for seed in range(300)]
    covered = np.mean([i.low <= 2.0 <= i.high for i in intervals])
    assert 0.885 <= covered <= 0.985


def test_many_values_take_little_memory_and_parts_change_no_number(monkeypatch):
    values = np.random.default_rng(0).normal(size=2_000)
    tracemalloc.start()
    found = mean_of(values.tolist())
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 60e6, "all draws at once are 320 MB"
    assert found == of_all_at_once(values)
    monkeypatch.setattr(intervals, "MOST_DRAWS", 1)
    assert mean_of(values[:5].tolist()) == of_all_at_once(values[:5])


def of_all_at_once(values: np.ndarray) -> Estimate:
    rng = np.random.default_rng([0, len(values)])
    means = rng.choice(values, (intervals.N_RESAMPLES, len(values))).mean(axis=1)
    return Estimate(float(values.mean()), *np.percentile(means, (2.5, 97.5)).tolist())


def test_one_value_says_nothing_of_its_spread():
    assert (mean_of([3.0]).value, mean_of([3.0]).low, mean_of([3.0]).high) == (3.0, None, None)
    assert (mean_of([2.0] * 5).low, mean_of([2.0] * 5).high) == (2.0, 2.0)


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf]])
def test_what_has_no_mean_is_refused(values):
    with pytest.raises(ValueError, match="a mean takes"):
        mean_of(values)

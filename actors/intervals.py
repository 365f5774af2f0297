"""How sure a rate or a mean is: 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959963984540054  # of the normal distribution, two-sided 95 %
N_RESAMPLES = 10_000
MOST_DRAWS = 1 << 21  # held at a time, 16 bytes each


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval; low and high are None where nothing can be said."""

    value: float
    low: float | None
    high: float | None


def rate_of(n_successes: int, n: int) -> Estimate:
    """Wilson's score interval (1927), which holds for few trials and near 0 and 1 too.

    Raises ValueError unless 0 <= n_successes <= n and n is positive.
    """
    if n < 1 or not 0 <= n_successes <= n:
        raise ValueError(f"{n_successes} successes of {n} trials make no rate")
    rate = n_successes / n
    centre = rate + Z * Z / (2 * n)
    half = Z * math.sqrt(rate * (1 - rate) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    # Rounding would leave the rate itself a hair outside at 0 and 1.
    low = min(rate, max(0.0, (centre - half) / scale))
    high = max(rate, min(1.0, (centre + half) / scale))
    return Estimate(rate, low, high)


def mean_of(values: Sequence[float], seed: int = 0) -> Estimate:
    """Percentile bootstrap of the mean; no interval from fewer than two values.

    Raises ValueError for no values or for one that is not finite.
    """
    array = np.asarray(values, np.float64)
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(f"a mean takes one finite value at least, got {list(values)[:5]}")
    mean = float(array.mean())
    if len(array) < 2:
        return Estimate(mean, None, None)
    rng = np.random.default_rng([seed, len(array)])
    means = np.empty(N_RESAMPLES)
    n_rows = max(1, MOST_DRAWS // len(array))
    for start in range(0, N_RESAMPLES, n_rows):
        part = means[start : start + n_rows]
        part[:] = rng.choice(array, (len(part), len(array))).mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Estimate(mean, min(mean, float(low)), max(mean, float(high)))

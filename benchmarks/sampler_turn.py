"""One turn at a prioritized sampler, in the same way for every contestant of `replay.py`.

Needs numpy alone, since TorchRL takes its turns in a process with packages of its own.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

ALPHA, BETA = 0.6, 0.4
SMALLEST = 0.01  # far above what the contestants add to priorities, which is up to 1e-4
TOLERANCE = 0.05
Times = list[tuple[float, float]]  # seconds of sampling and of updating, a pair a call


class Contestant(Protocol):
    """Draws items in proportion to priority^ALPHA."""

    def sample(self, batch_size: int) -> tuple[Any, Any]:
        """Indices [B] and importance weights [B], however the contestant gives them."""

    def update(self, indices: Any, priorities: NDArray[np.float32]) -> None:
        """Set the priorities [B] of what was sampled last."""


def make_priorities(n_items: int, seed: int = 0) -> NDArray[np.float32]:
    """[n_items] float32, the same for every contestant."""
    rng = np.random.default_rng(seed)
    return SMALLEST + rng.standard_exponential(n_items, dtype=np.float32)


def take_turn(
    contestant: Contestant,
    batch_size: int,
    *,
    seconds: float,
    max_calls: int,
    rng: np.random.Generator,
) -> Times:
    """Sample, then give what was sampled new priorities: at least once, at most `max_calls` times.

    Making the new priorities is outside the clock, as it is the learner's work.
    """
    times: Times = []
    end = perf_counter() + seconds
    while len(times) < max_calls and (not times or perf_counter() < end):
        fresh = SMALLEST + rng.standard_exponential(batch_size, dtype=np.float32)
        start = perf_counter()
        indices, _ = contestant.sample(batch_size)
        sampled = perf_counter()
        contestant.update(indices, fresh)
        times.append((sampled - start, perf_counter() - sampled))
    return times


def check(contestant: Contestant, priorities: NDArray[np.float32]) -> None:
    """RuntimeError unless draws and importance weights follow `priorities`, its present ones.

    Under proportional sampling the mean of the weights p^ALPHA drawn is sum(w^2) / sum(w), and
    importance times w^BETA is the same for all of a batch.
    """
    weights = priorities.astype(np.float64) ** ALPHA
    drawn = []
    for _ in range(20):
        indices, importance = contestant.sample(1024)
        drawn.append(weights[_on_host(indices)])
        constant = _on_host(importance) * drawn[-1] ** BETA
        if constant.max() > (1 + TOLERANCE) * constant.min():
            spread = constant.max() / constant.min()
            raise RuntimeError(f"importance weights of one batch are off by a factor of {spread}")
    mean, expected = float(np.mean(drawn)), float((weights**2).sum() / weights.sum())
    if abs(mean / expected - 1) > TOLERANCE:
        raise RuntimeError(f"the mean weight drawn is {mean}, proportional sampling has {expected}")


def _on_host(values: Any) -> NDArray[Any]:
    """An array of what a contestant gives, which may lie on a GPU."""
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values)

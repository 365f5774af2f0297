"""From what a search found to the action that is played."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float64]
GREEDY = 0.0  # temperature of play without chance


def sample_actions(
    policy: Probabilities, temperature: Probabilities, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Actions [B] from shares [B, A] ** (1 / temperature [B]); the largest share where GREEDY."""
    greedy = np.argmax(policy, axis=1)
    if not (temperature > GREEDY).any():
        return greedy
    exponent = 1.0 / np.where(temperature > GREEDY, temperature, 1.0)[:, None]
    logits = np.log(np.maximum(policy, 1e-12)) * exponent
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share[policy <= 0] = 0.0
    cumulative = np.cumsum(share, axis=1)
    draw = rng.random((len(share), 1)) * cumulative[:, -1:]
    return np.where(temperature > GREEDY, np.argmax(cumulative > draw, axis=1), greedy)


def share_out(prior: Probabilities, n_visits: int) -> NDArray[np.int32]:
    """Whole visits in proportion to `prior` [K, A]; rows sum to n_visits (largest remainder)."""
    exact = prior * n_visits
    visits = np.floor(exact)
    rank = np.argsort(np.argsort(-(exact - visits), axis=1, kind="stable"), axis=1)
    missing = n_visits - visits.sum(axis=1, keepdims=True)
    return (visits + (rank < missing)).astype(np.int32)

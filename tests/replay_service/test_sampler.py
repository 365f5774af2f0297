"""The sum tree and the prioritized sampler against exact oracles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.sampler import FAN_OUT, PrioritySampler, SumTree


def assert_counts_follow(counts: np.ndarray, share: np.ndarray) -> None:
    """Chi-square bound: mean k and variance 2k for k cells, so k + 6 sqrt(2k) is six deviations.

    Stratified draws scatter less than independent ones, so the bound is on the safe side.
    """
    assert counts[share == 0].sum() == 0
    expected = share[share > 0] * counts.sum()
    assert expected.min() > 5, "too few draws for a chi-square statistic"
    statistic = float(((counts[share > 0] - expected) ** 2 / expected).sum())
    n_cells = len(expected)
    assert statistic < n_cells + 6 * np.sqrt(2 * n_cells), (statistic, n_cells)


@settings(max_examples=80, deadline=None)
@given(
    n_slots=st.sampled_from([1, 2, 15, 16, 17, 255, 256, 257, 700]),
    operations=st.lists(
        st.tuples(st.integers(0, 699), st.integers(1, 60), st.floats(0, 1e6), st.booleans()),
        max_size=25,
    ),
)
def test_tree_sums_equal_the_leaves_after_any_writes(n_slots, operations):
    tree, oracle = SumTree(n_slots), np.zeros(n_slots)
    for position, length, weight, as_span in operations:
        start = position % n_slots
        stop = min(start + length, n_slots)
        if as_span:
            tree.set_span(start, stop, weight)
            oracle[start:stop] = weight
        else:
            slots = (start + 7 * np.arange(length)) % n_slots
            weights = np.linspace(0, weight, length)
            tree.set_weights(slots, weights)
            for slot, value in zip(slots, weights, strict=True):
                oracle[slot] = value
    np.testing.assert_array_equal(tree.leaves, oracle)
    assert tree.total == pytest.approx(oracle.sum(), rel=1e-12)
    if oracle.sum() > 0:
        slots = tree.draw(50, np.random.default_rng(0))
        assert (oracle[slots] > 0).all() and (np.diff(slots) >= 0).all()


def test_draws_are_stratified_exactly():
    """One draw per stratum of n: a leaf of share p comes n * p times, give or take 2."""
    weights = np.random.default_rng(1).random(300)
    tree = SumTree(300)
    tree.set_span(0, 300, weights)
    counts = np.bincount(tree.draw(5_000, np.random.default_rng(2)), minlength=300)
    expected = 5_000 * weights / weights.sum()
    assert (np.abs(counts - expected) < 2).all()


def test_mostly_zero_weights_are_never_drawn():
    weights = np.zeros(5_000)
    weights[[0, 17, 4_095, 4_999]] = (1e-12, 1.0, 1e9, 1e-3)
    tree = SumTree(5_000)
    tree.set_span(0, 5_000, weights)
    rng = np.random.default_rng(0)
    for n_draws in (1, 3, 1_000):
        assert (weights[tree.draw(n_draws, rng)] > 0).all()


def test_a_draw_rounded_past_the_total_stays_on_the_last_positive_leaf():
    class AlmostOne:
        def random(self, n: int) -> np.ndarray:
            return np.full(n, np.nextafter(1.0, 0.0))

    weights = np.zeros(FAN_OUT**2 + 3)
    weights[: FAN_OUT + 5] = 0.1
    tree = SumTree(len(weights))
    tree.set_span(0, len(weights), weights)
    for n_draws in (1, 7, 49):
        slots = tree.draw(n_draws, AlmostOne())
        assert slots[-1] == FAN_OUT + 4 and (weights[slots] > 0).all()


def test_a_draw_on_a_boundary_belongs_to_the_leaf_that_begins_there():
    class Zero:
        def random(self, n: int) -> np.ndarray:
            return np.zeros(n)

    tree = SumTree(300)
    tree.set_span(0, 300, 1.0)
    assert tree.draw(300, Zero()).tolist() == list(range(300))


def test_float64_tells_ten_million_neighbours_apart():
    n_slots = 10_000_000
    tree = SumTree(n_slots)
    tree.set_span(0, n_slots, 1.0)
    tree.set_weights(np.array([n_slots // 2]), np.array([1.5]))
    assert tree.total == n_slots + 0.5


def test_distribution_after_updates_removals_and_reuse():
    rng = np.random.default_rng(5)
    sampler = PrioritySampler(600, alpha=0.7, floor=1e-3)
    oracle = np.zeros(600)

    def insert(start: int, priority: np.ndarray) -> None:
        sampler.insert(start, priority.astype(np.float32))
        oracle[start : start + len(priority)] = priority.astype(np.float32)

    insert(0, rng.random(400) + 0.1)
    insert(400, rng.random(150) + 0.1)
    sampler.remove(0, 130)
    oracle[:130] = 0
    slots = rng.choice(np.arange(130, 550), 200, replace=False)
    fresh = (rng.random(200) * 3 + 0.05).astype(np.float32)
    assert sampler.update(slots, fresh) == 200
    oracle[slots] = fresh
    insert(20, rng.random(60) + 0.2)

    share = oracle**0.7
    share /= share.sum()
    n_positions = int((oracle > 0).sum())
    counts = np.zeros(600)
    for _ in range(400):
        slots, importance = sampler.draw(64, n_positions, 0.5, rng)
        counts += np.bincount(slots, minlength=600)
        exact = (n_positions * share[slots]) ** -0.5
        np.testing.assert_allclose(importance, exact / exact.max(), rtol=1e-5)
    assert_counts_follow(counts, share)


def test_uniform_mode_ignores_priorities():
    rng = np.random.default_rng(6)
    sampler = PrioritySampler(50, alpha=0.0, floor=1e-3)
    sampler.insert(0, np.geomspace(1e-4, 1e4, 40).astype(np.float32))
    slots, importance = sampler.draw(4_000, 40, 1.0, rng)
    share = np.repeat([1 / 40, 0.0], [40, 10])
    assert_counts_follow(np.bincount(slots, minlength=50), share)
    assert (importance == 1.0).all()


def test_invalid_priorities_are_counted_and_replaced():
    sampler = PrioritySampler(8, alpha=1.0, floor=0.5)
    sampler.insert(0, np.array([2.0, np.nan, -1.0, np.inf, 0.0], dtype=np.float32))
    assert sampler.n_invalid == 3
    assert sampler.tree.leaves.tolist() == [2.0, 2.0, 2.0, 2.0, 0.5, 0.0, 0.0, 0.0]
    applied = sampler.update(
        np.array([0, 1, 2, 3]), np.array([np.nan, 4.0, -0.5, np.inf], dtype=np.float32)
    )
    assert applied == 1 and sampler.n_invalid == 6
    assert sampler.tree.leaves.tolist()[:4] == [2.0, 4.0, 2.0, 2.0]
    sampler.insert(6, np.array([np.nan], dtype=np.float32))
    assert sampler.tree.leaves[6] == 4.0, "the highest valid priority seen, updates included"


def test_a_position_of_priority_zero_is_not_starved():
    sampler = PrioritySampler(100, alpha=0.6, floor=1e-3)
    sampler.insert(0, np.repeat([1.0, 0.0], [50, 50]).astype(np.float32))
    slots, _ = sampler.draw(20_000, 100, 0.4, np.random.default_rng(0))
    assert set(slots.tolist()) == set(range(100))

"""The sum tree and the prioritized samplers of both engines against exact oracles."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service import Handles
from replay_service.sampler import PrioritySampler
from replay_service.sum_tree import FAN_OUT, SumTree, _find
from replay_service.torch_sampler import TorchSampler

ENGINES = {"numba": PrioritySampler, "torch": TorchSampler}


def leaves_of(sampler) -> np.ndarray:
    return np.asarray(sampler.columns(sampler.tree.n_slots)[1])


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


@settings(max_examples=80)
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


@settings(max_examples=150)
@given(
    n_slots=st.sampled_from([1, 15, 16, 17, 255, 257, 700, 5_000]),
    n_masses=st.sampled_from([1, 2, 7, 40, 300]),
    share_live=st.sampled_from([0.001, 0.05, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_masses_find_the_leaves_of_the_cumulated_weights(n_slots, n_masses, share_live, seed):
    """Whole weights, so that all sums are exact; few masses descend levels that many walk along."""
    rng = np.random.default_rng(seed)
    weights = np.where(rng.random(n_slots) < share_live, rng.integers(1, 9, n_slots), 0)
    weights[rng.integers(n_slots)] = 3
    tree = SumTree(n_slots)
    tree.set_span(0, n_slots, weights)
    masses = np.sort(rng.integers(0, 2 * weights.sum(), n_masses)) / 2
    slots = np.empty(n_masses, dtype=np.int64)
    _find(tree._tree, tree._offsets, masses.copy(), slots)
    expected = np.searchsorted(np.cumsum(weights), masses, side="right")
    np.testing.assert_array_equal(slots, expected)


def test_single_and_spanned_writes_of_equal_leaves_give_equal_sums():
    """Bit for bit, so that a restored tree draws what the saved one would have drawn."""
    rng = np.random.default_rng(0)
    written, filled = SumTree(5_000), SumTree(5_000)
    for _ in range(20):
        written.set_weights(rng.integers(0, 5_000, 700), rng.random(700))
    filled.set_span(0, 5_000, written.leaves)
    np.testing.assert_array_equal(written._tree, filled._tree)


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


class Oracle:
    """Priorities as a plain array, beside the sampler that is tested."""

    def __init__(self, sampler, n_slots: int, alpha: float, floor: float) -> None:
        self.sampler, self.alpha, self.floor = sampler, alpha, floor
        self.priority = np.full(n_slots, -1.0, dtype=np.float32)  # -1: not drawable

    def insert(self, start: int, priority: np.ndarray) -> None:
        fresh = priority.astype(np.float32)
        self.sampler.insert(start, fresh)
        self.priority[start : start + len(fresh)] = fresh

    def remove(self, start: int, stop: int) -> None:
        self.sampler.remove(start, stop)
        self.priority[start:stop] = -1.0

    def update(self, slots: np.ndarray, priority: np.ndarray, generation: torch.Tensor) -> None:
        handles = Handles(0, slots, generation.numpy()[slots])
        self.sampler.write_back(handles, priority, generation)
        is_live = self.priority[slots] >= 0
        self.priority[slots[is_live]] = priority[is_live].astype(np.float32)

    @property
    def weights(self) -> np.ndarray:
        raised = np.maximum(self.priority.astype(np.float64), self.floor) ** self.alpha
        return np.where(self.priority >= 0, raised, 0.0)


@pytest.mark.parametrize("n_slots", [1_000, 10_000, 100_000, 1_000_000])
@pytest.mark.parametrize("share_live", [1.0, 0.02])
@pytest.mark.parametrize("engine", ENGINES)
def test_distribution_after_updates_evictions_and_reuse(engine, n_slots, share_live):
    """Chi-square and Kullback-Leibler distance over up to 500 cells of slots, alike in mass.

    Twice the number of draws times the distance follows chi-square too, hence the same bound.
    """
    rng = np.random.default_rng([n_slots, int(100 * share_live)])
    sampler = ENGINES[engine](n_slots, alpha=0.7, floor=1e-3)
    oracle = Oracle(sampler, n_slots, 0.7, 1e-3)
    generation = torch.zeros(n_slots, dtype=torch.int64)
    span = n_slots // 50
    starts = range(0, n_slots, span) if share_live == 1.0 else [0, 30 * span, 49 * span]
    for start in starts:
        oracle.insert(start, rng.random(max(int(span * share_live), 7)) + 0.1)
    oracle.remove(0, span // 3)
    oracle.insert(span // 10, rng.random(span // 10) + 0.2)
    for _ in range(4):
        slots = rng.choice(n_slots, n_slots // 10, replace=False)
        oracle.update(slots, rng.random(len(slots)) * 3 + 0.05, generation)
    weights = oracle.weights
    np.testing.assert_allclose(leaves_of(sampler), weights, rtol=1e-12)

    share, n_live = weights / weights.sum(), int((weights > 0).sum())
    counts = np.zeros(n_slots, dtype=np.int64)
    for _ in range(80):
        slots, importance = map(np.asarray, sampler.draw(256, n_live, 0.5, rng))
        counts += np.bincount(slots, minlength=n_slots)
        exact = (n_live * share[slots]) ** -0.5
        np.testing.assert_allclose(importance, exact / exact.max(), rtol=1e-5)
    assert counts[weights == 0].sum() == 0
    n_cells, shuffled = min(n_live // 4, 500), rng.permutation(n_slots)
    cells = np.empty(n_slots, dtype=np.int64)
    cells[shuffled] = np.minimum(np.cumsum(share[shuffled]) * n_cells, n_cells - 1)
    counts, share = np.bincount(cells, counts), np.bincount(cells, share)
    assert_counts_follow(counts[share > 0], share[share > 0])
    found = counts[counts > 0] / counts.sum()
    distance = float((found * np.log(found / share[counts > 0])).sum())
    assert 2 * counts.sum() * distance < len(share) + 6 * np.sqrt(2 * len(share))


@pytest.mark.parametrize("engine", ENGINES)
def test_uniform_mode_ignores_priorities(engine):
    rng = np.random.default_rng(6)
    sampler = ENGINES[engine](50, alpha=0.0, floor=1e-3)
    sampler.insert(0, np.geomspace(1e-4, 1e4, 40).astype(np.float32))
    slots, importance = map(np.asarray, sampler.draw(4_000, 40, 1.0, rng))
    share = np.repeat([1 / 40, 0.0], [40, 10])
    assert_counts_follow(np.bincount(slots, minlength=50), share)
    assert (importance == 1.0).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_invalid_priorities_are_counted_and_replaced(engine):
    sampler = ENGINES[engine](8, alpha=1.0, floor=0.5)
    sampler.insert(0, np.array([2.0, np.nan, -1.0, np.inf, 0.0], dtype=np.float32))
    assert sampler.n_invalid == 3
    assert leaves_of(sampler).tolist() == [2.0, 2.0, 2.0, 2.0, 0.5, 0.0, 0.0, 0.0]
    generation = torch.zeros(8, dtype=torch.int64)
    handles = Handles(0, np.array([0, 1, 2, 3]), np.zeros(4, dtype=np.int64))
    sampler.write_back(handles, np.array([np.nan, 4.0, -0.5, 1e300]), generation)
    assert sampler.n_invalid == 6 and sampler.n_stale == 0
    assert leaves_of(sampler).tolist()[:4] == [2.0, 4.0, 2.0, 2.0]
    sampler.insert(6, np.array([np.nan], dtype=np.float32))
    assert leaves_of(sampler)[6] == 4.0, "the highest valid priority seen, updates included"
    assert sampler.highest == 4.0


@pytest.mark.parametrize("engine", ENGINES)
def test_late_priorities_are_counted_and_change_nothing(engine):
    """Slots of an older generation, slots that are not drawable; invalid ones of those too."""
    sampler = ENGINES[engine](8, alpha=1.0, floor=0.5)
    sampler.insert(0, np.arange(1, 6, dtype=np.float32))
    sampler.remove(4, 5)
    generation = torch.tensor([0, 1, 0, 0, 0, 0, 0, 0])
    handles = Handles(0, np.array([0, 1, 1, 2, 4, 7]), np.zeros(6, dtype=np.int64))
    priority = np.array([9.0, 9.0, np.nan, 8.0, 9.0, np.inf])
    sampler.write_back(handles, priority, generation)
    assert (sampler.n_stale, sampler.n_invalid) == (4, 0)
    assert leaves_of(sampler).tolist() == [9.0, 2.0, 8.0, 4.0, 0.0, 0.0, 0.0, 0.0]
    assert sampler.total == 23.0


def test_handles_on_the_device_may_name_slots_that_do_not_exist():
    """To refuse them would take a look at them, for which the host would have to wait."""
    sampler = TorchSampler(8, alpha=1.0, floor=0.5)
    sampler.insert(0, np.ones(8, dtype=np.float32))
    handles = Handles(0, torch.tensor([-1, 8, 5]), torch.zeros(3, dtype=torch.int64))
    sampler.write_back(handles, torch.full((3,), 7.0), torch.zeros(8, dtype=torch.int64))
    assert sampler.n_stale == 2 and sampler.total == 14.0


def test_of_a_slot_that_repeats_priority_and_weight_agree():
    sampler = TorchSampler(8, alpha=0.5, floor=0.5)
    sampler.insert(0, np.ones(8, dtype=np.float32))
    handles = Handles(0, np.array([3, 3, 3]), np.zeros(3, dtype=np.int64))
    sampler.write_back(handles, np.array([4.0, 9.0, 16.0]), torch.zeros(8, dtype=torch.int64))
    priority, weights = sampler.columns(8)
    assert weights[3] == priority[3] ** 0.5 and float(priority[3]) in (4.0, 9.0, 16.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_position_of_priority_zero_is_not_starved(engine):
    sampler = ENGINES[engine](100, alpha=0.6, floor=1e-3)
    sampler.insert(0, np.repeat([1.0, 0.0], [50, 50]).astype(np.float32))
    slots, _ = sampler.draw(20_000, 100, 0.4, np.random.default_rng(0))
    assert set(slots.tolist()) == set(range(100))

"""The torch tree against the numba tree and against plain arrays, run on the CPU."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service.sum_tree import SumTree
from replay_service.torch_tree import TorchTree

# Fan-out and flat limit: the tree of each device, and small ones of several levels.
SHAPES = [(None, None), (64, 1 << 21), (2, 1), (3, 2), (16, 16)]


class Uniforms:
    """Stands in for a generator: the numbers that both trees draw by."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def random(self, n: int) -> np.ndarray:
        assert n == len(self._values)
        return self._values


def draw_both(torch_tree, numba_tree, uniforms: np.ndarray) -> tuple[list[int], list[int]]:
    ours = torch_tree.draw(torch.from_numpy(uniforms)).tolist()
    return ours, numba_tree.draw(len(uniforms), Uniforms(uniforms)).tolist()


@settings(max_examples=150)
@given(
    n_slots=st.sampled_from([1, 2, 15, 31, 32, 33, 63, 64, 65, 257, 700]),
    shape=st.sampled_from(SHAPES),
    operations=st.lists(
        st.tuples(
            st.integers(0, 699),
            st.integers(1, 60),
            st.one_of(st.just(0.0), st.floats(1e-6, 1e6)),
            st.booleans(),
        ),
        min_size=1,
        max_size=25,
    ),
    seed=st.integers(0, 1_000),
)
def test_any_interleaving_leaves_the_same_tree_and_the_same_draws(n_slots, shape, operations, seed):
    tree, oracle = TorchTree(n_slots, fan_out=shape[0], flat_limit=shape[1]), SumTree(n_slots)
    rng = np.random.default_rng(seed)
    for position, length, weight, as_span in operations:
        start = position % n_slots
        stop = min(start + length, n_slots)
        if as_span:
            tree.set_span(start, stop, weight)
            oracle.set_span(start, stop, weight)
        else:
            slots = np.unique((start + 7 * np.arange(length)) % n_slots)
            weights = rng.permutation(np.linspace(0, weight, len(slots)))
            tree.set_weights(torch.from_numpy(slots), torch.from_numpy(weights))
            oracle.set_weights(slots, weights)
        np.testing.assert_array_equal(tree.leaves.numpy(), oracle.leaves)
        assert tree.total == pytest.approx(oracle.total, rel=1e-12)
        if oracle.total > 0:
            ours, theirs = draw_both(tree, oracle, rng.random(50))
            assert ours == theirs and ours == sorted(ours)


@pytest.mark.parametrize("n_slots", [1_000, 10_000, 100_000, 1_000_000])
@pytest.mark.parametrize("share_positive", [1.0, 0.01])
def test_the_same_numbers_give_the_same_slots_at_any_size(n_slots, share_positive):
    rng = np.random.default_rng(n_slots)
    weights = rng.random(n_slots) * (rng.random(n_slots) < share_positive)
    tree, oracle = TorchTree(n_slots), SumTree(n_slots)
    tree.set_span(0, n_slots, torch.from_numpy(weights))
    oracle.set_span(0, n_slots, weights)
    for n_draws in (1, 256, 5_000):
        ours, theirs = draw_both(tree, oracle, rng.random(n_draws))
        assert ours == theirs


def test_a_draw_on_a_boundary_belongs_to_the_leaf_that_begins_there():
    tree = TorchTree(300, fan_out=4, flat_limit=4)
    tree.set_span(0, 300, 1.0)
    assert tree.draw(torch.zeros(300, dtype=torch.float64)).tolist() == list(range(300))


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_of_zero_are_never_drawn_at_the_edges_of_rounding(shape):
    """Weights over 21 orders of magnitude, and numbers that round up to the total."""
    n_slots = 5_000
    weights = np.zeros(n_slots)
    weights[[0, 17, 18, 4_095, 4_990]] = (1e-12, 1.0, 0.1, 1e9, 0.1)
    tree = TorchTree(n_slots, fan_out=shape[0], flat_limit=shape[1])
    tree.set_span(0, n_slots, torch.from_numpy(weights))
    almost_one = np.nextafter(1.0, 0.0)
    for n_draws in (1, 3, 49, 1_000):
        for uniform in (0.0, 0.5, almost_one):
            slots = tree.draw(torch.full((n_draws,), uniform, dtype=torch.float64)).numpy()
            assert (weights[slots] > 0).all()
        assert slots[-1] in (4_095, 4_990)


def test_prefix_sums_that_are_not_monotone_do_no_harm(monkeypatch):
    """A parallel scan rounds each sum its own way; here by up to eight units in the last place."""
    exact = torch.Tensor.cumsum
    generator = torch.Generator().manual_seed(0)

    def shaken(self: torch.Tensor, dim: int) -> torch.Tensor:
        sums = exact(self, dim)
        if not sums.is_floating_point():
            return sums
        noise = torch.randint(-8, 9, sums.shape, generator=generator)
        return sums * (1.0 + noise * 2.0**-53)

    monkeypatch.setattr(torch.Tensor, "cumsum", shaken)
    rng = np.random.default_rng(3)
    for density in (0.5, 0.05):
        weights = rng.random(3_000) * (rng.random(3_000) < density)
        for fan_out, flat_limit in ((32, 4_096), (4, 2), (2, 4_096)):
            tree = TorchTree(3_000, fan_out=fan_out, flat_limit=flat_limit)
            tree.set_span(0, 3_000, torch.from_numpy(weights))
            edges = np.append(np.cumsum(weights) / weights.sum(), 1.0)
            edges = edges[edges < 1.0]
            for edge in rng.choice(edges, 150):
                for uniform in (edge, np.nextafter(edge, 0.0)):
                    slots = tree.draw(torch.tensor([uniform], dtype=torch.float64))
                    assert weights[slots.item()] > 0.0


def test_sums_do_not_depend_on_how_the_leaves_were_written():
    """A restored tree must equal the saved one bit for bit."""
    weights = np.random.default_rng(4).random(5_000)
    piecewise, at_once = TorchTree(5_000), TorchTree(5_000)
    for slots in np.array_split(np.random.default_rng(5).permutation(5_000), 70):
        piecewise.set_weights(torch.from_numpy(slots), torch.from_numpy(weights[slots]))
    at_once.set_span(0, 5_000, torch.from_numpy(weights))
    assert torch.equal(piecewise._top, at_once._top)
    for ours, theirs in zip(piecewise._levels, at_once._levels, strict=True):
        assert torch.equal(ours, theirs)


def test_float64_tells_ten_million_neighbours_apart():
    n_slots = 10_000_000
    tree = TorchTree(n_slots)
    tree.set_span(0, n_slots, 1.0)
    tree.set_weights(torch.tensor([n_slots // 2]), torch.tensor([1.5], dtype=torch.float64))
    assert tree.total == n_slots + 0.5


def test_the_spare_slot_takes_what_must_have_no_effect():
    tree = TorchTree(64, fan_out=64)
    tree.set_span(0, 64, 1.0)
    tree.set_weights(torch.tensor([64, 3]), torch.tensor([0.0, 5.0], dtype=torch.float64))
    assert tree.leaves.shape == (64,) and tree.total == 68.0

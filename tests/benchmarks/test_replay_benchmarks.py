"""The replay benchmarks' own arithmetic, and that what they compare samples alike."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # benchmarks are scripts, not a package

from benchmarks.replay import alternate, median_us, table
from benchmarks.replay_memory import ALLOWED_BYTES, GAMES, Soak, bytes_a_position, slope_mb_an_hour
from benchmarks.sampler_contestants import NumpyChoice, Ours
from benchmarks.sampler_turn import ALPHA, check, make_priorities, take_turn


class Flawed:
    """Draws uniformly, or gives every item the same importance."""

    def __init__(self, priorities: np.ndarray, *, uniform: bool) -> None:
        self._weights = priorities.astype(np.float64) ** ALPHA
        self._uniform = uniform
        self._rng = np.random.default_rng(0)

    def sample(self, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        share = None if self._uniform else self._weights / self._weights.sum()
        indices = self._rng.choice(len(self._weights), batch_size, p=share)
        exact = self._weights[indices] ** -0.4
        return indices, exact if self._uniform else np.ones(batch_size)


@pytest.mark.parametrize(
    "make", [Ours, lambda p: Ours(p, engine="torch"), NumpyChoice], ids=["numba", "torch", "numpy"]
)
def test_contestants_draw_in_proportion_before_and_after_updates(make):
    priorities = make_priorities(20_000)
    contestant = make(priorities)
    check(contestant, priorities)
    fresh = 10 * make_priorities(20_000, seed=2)
    for _ in range(10):
        indices, _ = contestant.sample(1_000)
        indices = np.asarray(indices)
        contestant.update(indices, fresh[indices])
        priorities[indices] = fresh[indices]
    check(contestant, priorities)


@pytest.mark.parametrize(("uniform", "words"), [(True, "mean weight"), (False, "importance")])
def test_the_check_refuses_who_samples_otherwise(uniform, words):
    priorities = make_priorities(20_000)
    with pytest.raises(RuntimeError, match=words):
        check(Flawed(priorities, uniform=uniform), priorities)


def test_the_first_round_is_dropped_and_medians_are_microseconds():
    rounds = iter([[(9.0, 9.0)], [(1e-6, 4e-6), (2e-6, 5e-6)], [(3e-6, 6e-6)]])
    assert alternate({"ours": lambda batch_size: next(rounds)}, 1, n_rounds=2) == {
        "ours": (pytest.approx(2.0), pytest.approx(5.0))
    }
    assert median_us([(1e-6, 2e-6)]) == (pytest.approx(1.0), pytest.approx(2.0))


def test_a_turn_ends_after_its_calls_or_its_time_but_never_without_a_call():
    contestant, rng = NumpyChoice(make_priorities(1_000)), np.random.default_rng(0)
    assert len(take_turn(contestant, 8, seconds=100.0, max_calls=3, rng=rng)) == 3
    assert len(take_turn(contestant, 8, seconds=0.0, max_calls=3, rng=rng)) == 1


def test_the_table_gives_sums_of_sampling_and_updating_over_ours():
    lines = table({"cell": {"ours": (10.0, 10.0), "peer": (20.0, 30.0)}})
    assert lines[2:] == ["| ours | 10 + 10 |", "| peer | 20 + 30 |", "| peer / ours | 2.5 |"]


def test_a_slope_is_fitted_after_the_warm_up():
    times = [float(t) for t in range(101)]
    resident = [0.0 if t < 20 else 100.0 + t / 3_600 for t in times]
    assert slope_mb_an_hour(times, resident) == pytest.approx(1.0)


def test_a_position_costs_its_frame_and_little_more_in_overlapping_segments():
    used, _, n_positions = bytes_a_position(GAMES["64x64 gray, stack 4"], 20.0, 40)
    assert n_positions > 4_000
    assert used < 1.05 * (64 * 64 + ALLOWED_BYTES)


def test_the_soak_evicts_and_patches():
    machine = Soak()
    for _ in range(60):
        machine.turn()
    stats = machine.replay.stats()
    assert stats["replay_positions"] < stats["replay_push_total"]  # of which many are gone
    assert machine.n_patched > 0 and stats["replay_stale_total"] == 0
    assert machine.replay.sample_text(4) is not None

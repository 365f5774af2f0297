"""When segments are searched again: the loop over a model of replay, and its bounds."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.reanalysis import ReanalysisConfig, ReanalysisReport
from launch.config import Config
from launch.control.progress import Progress
from launch.control.refresh_loop import (
    RECENT_POSITIONS,
    REFRESHES_IN_FLIGHT,
    RecentShare,
    RefreshLoop,
)
from learner.config import LearnerConfig
from learner.learner import TrainReport


@dataclass
class Calls:
    """The call book's two verbs that the loop uses."""

    issued: list[tuple] = field(default_factory=list)

    def n_in_flight(self, method, child):
        return len(self.issued)

    def issue(self, child, method, *args):
        self.issued.append((child, method, *args))


@dataclass
class Fleet:
    reanalyser: object | None = "reanalyser"


def make_loop(share: float, fleet: Fleet | None = None) -> tuple[RefreshLoop, Calls, Progress]:
    config = Config(
        reanalysis=ReanalysisConfig(share=share),
        learner=LearnerConfig(batch_size=64, publish_every=10),
    )
    calls, progress = Calls(), Progress(1)
    return RefreshLoop(config, calls, fleet or Fleet(), progress), calls, progress


def train(loop: RefreshLoop, progress: Progress, share: float, n_updates: int = 4) -> None:
    report = TrainReport(n_updates, {"reanalysed_share": share}, {})
    progress.trained(report)
    loop.trained(report)


def test_nothing_is_issued_before_learning_or_without_a_reanalyser():
    loop, calls, _ = make_loop(0.5)
    loop.issue()
    assert not calls.issued
    loop, calls, progress = make_loop(0.5, Fleet(reanalyser=None))
    train(loop, progress, 0.0)
    loop.issue()
    assert not calls.issued


def test_calls_are_bounded_and_stop_at_the_wanted_share():
    loop, calls, progress = make_loop(0.5)
    progress.env_steps = 77
    train(loop, progress, 0.2)
    loop.issue()
    loop.issue()
    assert calls.issued == [("reanalyser", "refresh", 4, 77)] * REFRESHES_IN_FLIGHT
    calls.issued.clear()
    train(loop, progress, 0.5)
    loop.issue()
    assert not calls.issued


def test_without_older_targets_it_waits_for_the_next_publication():
    loop, calls, progress = make_loop(0.5)
    train(loop, progress, 0.0)
    loop.answered(ReanalysisReport(weight_version=0))
    for n_updates in (4, 5):
        train(loop, progress, 0.0, n_updates)
        loop.issue()
        assert not calls.issued
    train(loop, progress, 0.0, 1)
    loop.issue()
    assert calls.issued


@given(calls=st.lists(st.tuples(st.integers(1, 600), st.floats(0.0, 1.0)), min_size=1, max_size=30))
def test_the_share_is_that_of_the_fewest_newest_calls_that_hold_enough(calls):
    recent = RecentShare()
    assert recent.share is None
    for n_positions, share in calls:
        recent.add(n_positions, share)
    kept = []
    for n_positions, share in reversed(calls):
        kept.append((n_positions, share))
        if sum(n for n, _ in kept) >= RECENT_POSITIONS:
            break
    n_kept = sum(n for n, _ in kept)
    assert recent.share == pytest.approx(sum(n * s for n, s in kept) / n_kept, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    wanted=st.floats(0.05, 0.9),
    capacity=st.integers(1_000, 5_000),
    inserted=st.integers(1, 60),
    refreshed=st.integers(10, 160),
)
def test_the_loop_holds_the_share_of_a_replay_that_turns_over(
    wanted, capacity, inserted, refreshed
):
    """Uniform sampling from a ring of positions; each round inserts, samples and may refresh."""
    loop, calls, progress = make_loop(wanted)
    is_fresh = [False] * capacity
    seen = []
    for round_ in range(2_000):
        is_fresh = is_fresh[inserted:] + [False] * inserted
        share = sum(is_fresh) / capacity
        seen.append(share)
        train(loop, progress, share)
        loop.issue()
        for _ in calls.issued:
            oldest = [i for i, fresh in enumerate(is_fresh) if not fresh][:refreshed]
            for i in oldest:
                is_fresh[i] = True
            loop.answered(ReanalysisReport(weight_version=round_, n_segments=len(oldest)))
        calls.issued.clear()
        if round_ * max(inserted, 1) > 3 * capacity:
            break
    settled = seen[len(seen) // 2 :]
    # A round inserts and refreshes whole chunks; the share moves by no more than both.
    step = (REFRESHES_IN_FLIGHT * refreshed + inserted) / capacity
    if REFRESHES_IN_FLIGHT * refreshed > 2 * inserted:
        assert wanted - step - 0.01 <= min(settled) and max(settled) <= wanted + step + 0.01

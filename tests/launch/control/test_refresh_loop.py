"""When segments are searched again: the loop over a model of replay, and its bounds."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.reanalysis import ReanalysisConfig, ReanalysisReport
from launch.config import Config
from launch.control.progress import Progress
from launch.control.refresh_loop import RECENT_POSITIONS, RecentShare, RefreshLoop
from learner.config import LearnerConfig
from learner.learner import TrainReport


@dataclass
class Calls:
    """The call book's two verbs that the loop uses; nothing is answered by itself."""

    issued: list[tuple] = field(default_factory=list)

    def n_in_flight(self, method, child):
        return len(self.issued)

    def issue(self, child, method, *args):
        self.issued.append((child, method, *args))


@dataclass
class Fleet:
    reanalyser: object | None = "reanalyser"


class Roster:
    def takes_work(self, child):
        return child is not None


def make_loop(share: float, fleet: Fleet | None = None) -> tuple[RefreshLoop, Calls, Progress]:
    config = Config(
        reanalysis=ReanalysisConfig(share=share),
        learner=LearnerConfig(batch_size=64, publish_every=10),
    )
    calls, progress = Calls(), Progress(1)
    return RefreshLoop(config, calls, fleet or Fleet(), Roster(), progress), calls, progress


def train(loop: RefreshLoop, progress: Progress, share: float, n_updates: int = 4) -> None:
    report = TrainReport(n_updates, {"reanalysed_share": share}, {})
    progress.trained(report)
    loop.trained(report)


def test_nothing_is_issued_before_learning_or_without_a_reanalyser():
    loop, calls, _ = make_loop(0.5)
    loop.inserted(500)
    loop.issue()
    assert not calls.issued
    loop, calls, progress = make_loop(0.5, Fleet(reanalyser=None))
    loop.inserted(500)
    train(loop, progress, 0.0)
    loop.issue()
    assert not calls.issued


def test_one_call_is_in_flight_and_none_at_the_wanted_share():
    loop, calls, progress = make_loop(0.5)
    progress.env_steps = 77
    loop.inserted(500)
    train(loop, progress, 0.2)
    loop.issue()
    loop.issue()
    assert calls.issued == [("reanalyser", "refresh", 4, 77)]
    calls.issued.clear()
    train(loop, progress, 0.5)
    loop.issue()
    assert not calls.issued


def test_it_refreshes_at_most_twice_what_comes_in():
    loop, calls, progress = make_loop(0.9)
    train(loop, progress, 0.0)
    n_refreshed = n_inserted = 0
    for _ in range(100):
        loop.inserted(7)
        n_inserted += 7
        loop.issue()
        for _ in calls.issued:
            loop.answered(ReanalysisReport(n_segments=4, n_trainable=100))
            n_refreshed += 100
        calls.issued.clear()
        assert n_refreshed <= 2 * n_inserted + 100
    assert n_refreshed > 2 * n_inserted - 100


def test_without_older_targets_it_waits_for_the_next_publication():
    loop, calls, progress = make_loop(0.5)
    loop.inserted(500)
    train(loop, progress, 0.0)
    loop.answered(ReanalysisReport(weight_version=0))
    for n_updates in (4, 5):
        train(loop, progress, 0.0, n_updates)
        loop.issue()
        assert not calls.issued
    train(loop, progress, 0.0, 1)
    loop.issue()
    assert calls.issued


@given(
    reports=st.lists(st.tuples(st.integers(1, 600), st.floats(0.0, 1.0)), min_size=1, max_size=30)
)
def test_the_share_is_that_of_the_fewest_newest_reports_that_hold_enough(reports):
    recent = RecentShare()
    assert recent.share is None
    for n_positions, share in reports:
        recent.add(n_positions, share)
    kept = []
    for n_positions, share in reversed(reports):
        kept.append((n_positions, share))
        if sum(n for n, _ in kept) >= RECENT_POSITIONS:
            break
    n_kept = sum(n for n, _ in kept)
    assert recent.share == pytest.approx(sum(n * s for n, s in kept) / n_kept, abs=1e-9)


@settings(max_examples=40)
@given(
    wanted=st.floats(0.05, 0.9),
    capacity=st.integers(1_000, 5_000),
    inserted=st.integers(5, 60),
    refreshed=st.integers(10, 160),
    lag=st.integers(0, 3),
)
def test_the_loop_holds_the_share_of_a_replay_that_turns_over(
    wanted, capacity, inserted, refreshed, lag
):
    """Uniform sampling from a ring of positions; the learner tells `lag` rounds late."""
    loop, calls, progress = make_loop(wanted)
    is_fresh = np.zeros(capacity, bool)
    shares = [0.0] * (lag + 1)
    for _ in range(4 * capacity // inserted):
        is_fresh = np.append(is_fresh[inserted:], np.zeros(inserted, bool))
        loop.inserted(inserted)
        shares.append(is_fresh.mean())
        train(loop, progress, shares[-1 - lag])
        loop.issue()
        n_calls = len(calls.issued)
        calls.issued.clear()
        for _ in range(n_calls):
            oldest = np.flatnonzero(~is_fresh)[:refreshed]
            is_fresh[oldest] = True
            loop.answered(ReanalysisReport(n_segments=1, n_trainable=len(oldest)))
    settled = shares[len(shares) // 2 :]
    if refreshed < 2 * inserted:  # one call a round, and it brings too little
        return
    # What was saved up and a last call may go too far, and so may what is done before it shows.
    slack = (160 + refreshed + 3 * inserted * (lag + 1)) / capacity
    assert wanted - slack <= min(settled) and max(settled) <= wanted + slack

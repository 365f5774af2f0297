"""What episodes, searches and calls come to in a record."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from actors.collect_report import CollectReport, EpisodeRecord, end_reason
from launch.control.episode_figures import RECENT_EPISODES, EpisodeFigures
from launch.control.progress import Progress
from learner.learner import TrainReport


def episode(level: str, reason: str, max_x: int | None = 100) -> EpisodeRecord:
    return EpisodeRecord(0, 0, level, 1.0, 10, reason, max_x)


def test_stages_are_cleared_by_their_flag_over_the_last_episodes_of_each() -> None:
    figures = EpisodeFigures()
    for _ in range(3 * RECENT_EPISODES):
        figures.add(episode("1-1", "death"))
    for index in range(RECENT_EPISODES):
        figures.add(episode("1-1", "flag" if index % 4 == 0 else "death"))
    figures.add(episode("1-2", "stall"))
    figures.add(episode("cooking", "won", max_x=None))
    metrics = figures.metrics(Counter(death=3, won=1))
    rates = {n: v for n, v in metrics.items() if n.startswith("stage_clear_rate/")}
    assert rates == {"stage_clear_rate/1-1": 0.25, "stage_clear_rate/1-2": 0.0}


def test_ends_are_counts_and_shares_of_the_whole_run() -> None:
    figures = EpisodeFigures()
    assert figures.metrics(Counter(flag=4)) == {}, "none since this process began"
    figures.add(episode("1-1", "flag"))
    metrics = figures.metrics(Counter(flag=1, timeout=3))
    assert (metrics["episode_end_flag_total"], metrics["episode_end_flag_share"]) == (1.0, 0.25)
    assert metrics["episode_end_timeout_total"] == 3.0


def test_returns_and_lengths_are_those_of_the_last_hundred_episodes() -> None:
    """Returns 1 to 100 and lengths 2 to 200, in any order; percentiles between two are halfway."""
    figures = EpisodeFigures()
    for _ in range(7):
        figures.add(EpisodeRecord(0, 0, "1-1", -1e6, 10**6, "death", None))
    for n in np.random.default_rng(0).permutation(np.arange(1, 101)):
        figures.add(EpisodeRecord(0, 0, "1-1", float(n), 2 * int(n), "death", None))
    metrics = figures.metrics(Counter(death=107))
    expected = {
        "avg_return": 50.5,
        "recent_return_std": np.sqrt((100**2 - 1) / 12),
        "recent_return_min": 1.0,
        "recent_return_max": 100.0,
        "recent_return_p50": 50.5,
        "recent_return_p90": 90.1,
        "recent_return_p99": 99.01,
        "episode_length_mean": 101.0,
        "episode_length_p50": 101.0,
        "episode_length_p90": 180.2,
        "episode_length_p99": 198.02,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    "info, terminated, reason",
    [
        ({"death": True, "time": 0}, True, "timeout"),
        ({"death": True, "time": 217}, True, "death"),
        ({"flag": True, "time": 0}, True, "flag"),
        ({"time": 0}, False, "truncated"),
        ({}, True, "terminated"),
    ],
)
def test_a_death_by_the_clock_is_a_timeout(info: dict, terminated: bool, reason: str) -> None:
    assert end_reason(info, terminated) == reason


def test_divergence_of_search_from_prior_is_a_mean_over_those_that_had_one() -> None:
    policy = np.array([[0.5, 0.5], [1.0, 0.0], [0.2, 0.8]], np.float32)
    prior = np.array([[0.5, 0.5], [0.0, 1.0], [0.9, 0.1]], np.float32)
    report = CollectReport()
    report.add_prior(policy, prior, np.array([True, True, False]))
    assert report.search["n_priors"] == 2.0
    assert report.search["prior_kl"] == pytest.approx(np.log(1e6), rel=1e-5), (
        "bounded, not infinite"
    )


def test_calls_have_mean_times_and_weights_an_age() -> None:
    progress = Progress(1, clock=lambda: 0.0)
    trained = {"sample_wait": 1.0, "transfer": 0.1, "compute": 0.6, "publish": 0.1}
    progress.trained(TrainReport(8, {}, trained, version=40))
    for version, seconds in ((30, 2.0), (40, 4.0)):
        report = CollectReport(weight_version=version, seconds={"total": seconds})
        report.search, report.depth_max = {"n_roots": 2, "depth": 6.0}, version // 10
        progress.collected("env-actor-0", report)
    metrics = progress.close_window()
    assert metrics["rollout_time_s"] == 3.0
    assert metrics["learn_time_s"] == pytest.approx(1.8)
    assert metrics["update_time_ms"] == pytest.approx(100.0)
    assert (metrics["acting_lag_mean"], metrics["acting_lag_max"]) == (5.0, 10.0)
    assert (metrics["search_depth_mean"], metrics["search_depth_max"]) == (3.0, 4.0)
    assert "acting_lag_mean" not in progress.close_window(), "nothing acted since"

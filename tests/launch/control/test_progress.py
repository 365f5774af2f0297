"""Who works and who waits, in percent of a window, from what env actors and learner report."""

import pytest

from actors.collect_report import CollectReport
from launch.control.progress import Progress
from learner.learner import TrainReport


def shares(metrics: dict[str, float]) -> dict[str, float]:
    return {n: v for n, v in metrics.items() if n.startswith(("time_percent", "wait_percent"))}


def trained(**seconds: float) -> TrainReport:
    return TrainReport(n_updates=1, version=1, metrics={}, seconds=seconds)


def test_shares_of_a_window_are_of_its_length_and_of_all_env_actors():
    now = [100.0]
    progress = Progress(2, lambda: now[0])
    first = {"env": 1.0, "search": 3.0, "prior_ask": 0.5, "prior_wait": 1.5, "pull": 0.25}
    progress.collected("env-actor-0", CollectReport(seconds=first | {"total": 7.0}))
    progress.collected("env-actor-1", CollectReport(seconds={"env": 2.0, "total": 3.0}))
    progress.trained(trained(sample_wait=1.0, transfer=0.5, compute=4.0, publish=0.5))
    now[0] += 10.0
    assert shares(progress.close_window()) == pytest.approx(
        {
            "time_percent/env_actor/env": 15.0,
            "time_percent/env_actor/search": 15.0,
            "time_percent/env_actor/prior_ask": 2.5,
            "time_percent/env_actor/pull": 1.25,
            "wait_percent/env_actor/prior": 7.5,
            "wait_percent/env_actor/limiter": 50.0,  # of 20 s, calls took 10
            "time_percent/learner/transfer": 5.0,
            "time_percent/learner/compute": 40.0,
            "time_percent/learner/publish": 5.0,
            "wait_percent/learner/sample": 10.0,
            "wait_percent/learner/limiter": 40.0,
        }
    )
    now[0] += 10.0
    later = shares(progress.close_window())
    assert {n: v for n, v in later.items() if v} == {
        "wait_percent/env_actor/limiter": 100.0,
        "wait_percent/learner/limiter": 100.0,
    }


def test_what_is_left_of_a_window_is_never_negative():
    """A call's seconds all fall into the window in which it ends."""
    now = [0.0]
    progress = Progress(1, lambda: now[0])
    progress.collected("env-actor-0", CollectReport(seconds={"search": 30.0, "total": 30.0}))
    progress.trained(trained(compute=25.0))
    now[0] += 10.0
    found = shares(progress.close_window())
    assert found["time_percent/env_actor/search"] == pytest.approx(300.0)
    assert found["time_percent/learner/compute"] == pytest.approx(250.0)
    assert found["wait_percent/env_actor/limiter"] == found["wait_percent/learner/limiter"] == 0.0


def test_a_wait_for_the_search_service_is_no_work_of_the_env_actor():
    now = [0.0]
    progress = Progress(1, lambda: now[0])
    progress.collected("env-actor-0", CollectReport(seconds={"search_wait": 6.0, "total": 8.0}))
    now[0] += 10.0
    found = shares(progress.close_window())
    assert found["wait_percent/env_actor/search"] == pytest.approx(60.0)
    assert found["time_percent/env_actor/search"] == 0.0
    assert found["wait_percent/env_actor/limiter"] == pytest.approx(20.0)

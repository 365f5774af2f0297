"""The lines that tell how far environments are made."""

from __future__ import annotations

from launch.control.construction import Construction


def test_counts_environments_of_actors_that_have_answered() -> None:
    now = [100.0]
    construction = Construction(2, 4, lambda: now[0])
    assert construction.begun() == "[env] constructing 0/8 ..."
    now[0] += 2.0  # they are started, and told of later
    for child in ("learner", "env-actor-0", "env-actor-1"):
        assert construction.changed(child, "starting") is None
    now[0] += 0.5
    assert construction.changed("env-actor-1", "healthy") == (
        "[env] constructing 4/8, env-actor-1 after 2.5 s"
    )
    now[0] += 1.0
    assert construction.changed("learner", "healthy") is None
    assert construction.changed("env-actor-0", "healthy") == (
        "[env] constructing 8/8, env-actor-0 after 3.5 s"
    )
    assert construction.changed("env-actor-0", "suspect") is None
    assert construction.changed("env-actor-0", "healthy") is None, "it was only late"


def test_a_replaced_actor_makes_its_environments_again() -> None:
    now = [0.0]
    construction = Construction(1, 4, lambda: now[0])
    construction.changed("env-actor-0", "starting")
    construction.changed("env-actor-0", "restarting")
    construction.changed("env-actor-0", "starting")
    construction.changed("env-actor-0", "healthy")
    construction.changed("env-actor-0", "restarting")
    construction.changed("env-actor-0", "starting")
    now[0] += 7.0
    assert construction.changed("env-actor-0", "healthy") == (
        "[env] constructing 4/4, env-actor-0 again after 7.0 s"
    )

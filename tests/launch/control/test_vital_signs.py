"""Ages that alerts look at."""

from __future__ import annotations

from launch.control.vital_signs import VitalSigns


def test_silence_counts_for_those_who_should_answer() -> None:
    now = [0.0]
    signs = VitalSigns(lambda: now[0])
    for child in ("learner", "env-actor-0", "env-actor-1"):
        signs.change(child, "starting")
    now[0] = 200.0
    assert signs.figures()["processes_stalled"] == 0, "nobody has answered yet"
    for child in ("learner", "env-actor-0", "env-actor-1"):
        signs.beat(child, "ping")
        signs.change(child, "healthy")
    now[0] = 330.0
    signs.beat("learner", "train")
    assert signs.figures()["heartbeat_age_s_max"] == 130.0
    assert signs.figures()["processes_stalled"] == 2
    signs.change("env-actor-0", "restarting")
    signs.change("env-actor-1", "suspect")
    assert signs.figures()["processes_stalled"] == 1
    assert {beat.process: (beat.age_s, beat.state) for beat in signs.heartbeats()} == {
        "learner": (0.0, "healthy"),
        "env-actor-0": (130.0, "restarting"),
        "env-actor-1": (130.0, "suspect"),
    }


def test_age_of_a_checkpoint_counts_from_the_start() -> None:
    now = [0.0]
    signs = VitalSigns(lambda: now[0])
    now[0] = 90.0
    assert signs.figures()["checkpoint_age_min"] == 1.5
    signs.saved()
    now[0] = 120.0
    assert signs.figures()["checkpoint_age_min"] == 0.5

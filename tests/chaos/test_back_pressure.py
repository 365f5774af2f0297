"""A run whose learner and replay are slow for a while; back_pressure.py is the long form."""

import random

from tests.chaos.back_pressure import Case, complaints, finish, press, wait_until_ready
from tests.chaos.real_run import SMALL, RealRun

CALM_S = 4.0
PRESSED_S = 12.0
# Milder than the long form: even on a busy machine a call is to end in each half of the time.
SLOW = Case(
    [*SMALL, "--replay.capacity-mb", "0.2", "--replay.text-mb", "1"], ("learner", "replay"), 0.6
)


def test_a_slow_learner_and_replay_hold_the_rest_up_and_nothing_piles_up(tmp_path, fault_seed):
    run = RealRun(tmp_path / "run", settings=SLOW.settings)
    run.start()
    try:
        wait_until_ready(run, SLOW)
        result = press(run, SLOW, PRESSED_S, random.Random(fault_seed), CALM_S)
        found = complaints(run, SLOW, result) + finish(run)
        assert not found, found
    finally:
        run.kill()

"""The driver, and those that only watch, killed in real Ray runs."""

import os
import random
import signal
import time

import pytest

from tests.chaos.real_run import EXIT_RESUMABLE, RealRun

CHECKPOINT_EVERY = 200  # env steps, of the small real run
OVERSHOOT = 64  # env steps of the calls that were under way when a checkpoint became due


def newest_checkpoint(run: RealRun, before: float = float("inf")) -> str:
    return [e["path"] for e in run.events("checkpoint") if e["timestamp"] < before][-1]


@pytest.mark.fault(child="driver", lost="env steps and updates since the last checkpoint")
def test_a_killed_driver_loses_what_came_since_the_checkpoint(tmp_path, fault_seed):
    run = RealRun(tmp_path / "run")
    run.start()
    run.wait_until(lambda: run.events("checkpoint") and run.metrics()["update"] > 50, "learning")
    time.sleep(random.Random(fault_seed).uniform(0.0, 5.0))
    run.process.kill()
    run.process.wait()
    before, source = run.metrics(), newest_checkpoint(run)
    run.start()
    run.wait_until(lambda: run.events("resumed"), "the run to go on")
    (resumed,) = run.events("resumed")
    run.wait_until(lambda: run.metrics()["global_step"] > before["global_step"], "what was lost")
    assert run.stop() == EXIT_RESUMABLE, run.output()
    lost = before["global_step"] - resumed["env_steps"]
    print(f"{lost:.0f} env steps lost")
    assert resumed["source"] == source
    assert lost <= CHECKPOINT_EVERY + OVERSHOOT
    assert run.metrics()["replay_duplicate_total"] == 0


@pytest.mark.fault(child="evaluator", lost="the evaluation under way")
@pytest.mark.fault(child="monitor", lost="heartbeats and figures while it is away")
def test_watchers_come_back_and_nothing_else_notices(tmp_path, fault_seed):
    run = RealRun(tmp_path / "run")
    run.start()
    known = watched(run)
    for name in shuffled(fault_seed):
        os.kill(known[name], signal.SIGKILL)
    run.wait_until(lambda: run.pids().get("monitor") not in (None, known["monitor"]), "a monitor")
    run.wait_until(
        lambda: run.pids().get("evaluator") not in (None, known["evaluator"]), "an evaluator"
    )
    n_played = len(run.events("evaluation"))
    run.wait_until(lambda: len(run.events("evaluation")) > n_played, "an evaluation")
    assert run.stop() == EXIT_RESUMABLE, run.output()
    assert sorted(e["child"] for e in run.events("child_failed")) == ["evaluator", "monitor"]
    only_the_dead_were_restarted(run, known)


@pytest.mark.fault(child="evaluator or monitor, too often", lost="what they would have told")
def test_a_run_goes_on_without_watchers_that_fail_too_often(tmp_path, fault_seed):
    run = RealRun(tmp_path / "run", "--control.max-restarts", "0")
    run.start()
    known = watched(run)
    for name in shuffled(fault_seed):
        os.kill(known[name], signal.SIGKILL)
    run.wait_until(lambda: len(run.events("child_quarantined")) == 2, "both to be given up")
    steps, n_checkpoints = run.metrics()["global_step"], len(run.events("checkpoint"))
    run.wait_until(
        lambda: (
            run.metrics()["global_step"] > steps + 300
            and len(run.events("checkpoint")) > n_checkpoints
        ),
        "play and a checkpoint without them",
    )
    assert run.stop() == EXIT_RESUMABLE, run.output()
    for name in ("evaluator", "monitor"):
        assert f"child_quarantined: child {name}" in run.output()
    only_the_dead_were_restarted(run, known)


def watched(run: RealRun) -> dict[str, int]:
    """Pids, once everything is at work."""
    run.wait_until(
        lambda: {"monitor", "evaluator", "learner"} <= set(run.pids()) and run.events("evaluation"),
        "every process and an evaluation",
    )
    return run.pids()


def shuffled(seed: int) -> list[str]:
    names = ["evaluator", "monitor"]
    random.Random(seed).shuffle(names)
    return names


def only_the_dead_were_restarted(run: RealRun, known: dict[str, int]) -> None:
    states = [(e["child"], e["state"]) for e in run.events("child_state")]
    for name in set(known) - {"evaluator", "monitor"}:
        seen = [state for child, state in states if child == name]
        assert "restarting" not in seen and "quarantined" not in seen, (name, seen)
    assert "Traceback" not in run.output()

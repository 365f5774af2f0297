"""Env actors whose environment hangs, breaks or takes its process along, in real Ray runs."""

import json
import os
import random
import shlex
import signal
from pathlib import Path

import psutil
import pytest

from tests.chaos.real_run import EXIT_RESUMABLE, ROOT, RealRun

DEADLINE_S = 8
COLLECT_STEPS = 8
# Noticed late on a machine that is busy: the loop's turn and Ray's own report of a death.
SPARE_S = 12.0
FAULTY = shlex.split(
    f"""--env faulty_env:Faulty-v0 --acting.envs-per-actor 2 --control.max-restarts 20
    --acting.collect-steps {COLLECT_STEPS} --control.collect-deadline-s {DEADLINE_S}
    --evaluation.every-env-steps 1000000 --evaluation.final-episodes 1"""
)


def faulty_run(tmp_path: Path, plan: list[tuple[str, int]], *arguments: str) -> RealRun:
    folder = tmp_path / "faults"
    folder.mkdir()
    (folder / "plan.json").write_text(json.dumps(plan))
    paths = os.pathsep.join((str(Path(__file__).parent), str(ROOT)))
    return RealRun(
        tmp_path / "run",
        *FAULTY,
        *arguments,
        variables={"WARPZONE_FAULTS": str(folder), "PYTHONPATH": paths},
    )


def faults(tmp_path: Path) -> list[dict]:
    """Those that were taken, in the order of the plan."""
    return [json.loads(p.read_text()) for p in sorted((tmp_path / "faults").glob("*/what.json"))]


def steps_taken(tmp_path: Path) -> int:
    return sum(path.stat().st_size for path in (tmp_path / "faults").glob("steps-*"))


@pytest.mark.fault(
    child="env actor: SIGKILL, hang, `os._exit`, exception, no memory",
    lost="episodes under way and the steps of two collect calls",
)
def test_a_broken_env_costs_its_actor_and_no_more_than_the_calls_under_way(tmp_path, fault_seed):
    rng = random.Random(fault_seed)
    kinds = ["raise", "memory", "exit", "kill", "hang", "hang holding the GIL"]
    rng.shuffle(kinds)
    plan = [(kind, rng.randrange(40, 80)) for kind in kinds]
    traced = shlex.split("--slow-step-trace-threshold 2 --slow-step-trace-window 30")
    run = faulty_run(tmp_path, plan, *traced, "--trace.slow-steps", "1")
    run.start()
    run.wait_until(lambda: len(faults(tmp_path)) == len(kinds), "every fault")
    run.wait_until(lambda: len(run.events("child_failed")) == len(kinds), "every failure")
    steps = run.metrics()["global_step"]
    run.wait_until(lambda: run.metrics()["global_step"] > steps + 100, "more play")
    assert run.stop() == EXIT_RESUMABLE, run.output()

    failures = run.events("child_failed")
    assert all(e["child"].startswith("env-actor-") and e["host"] for e in failures), failures
    hits = sorted(faults(tmp_path), key=lambda fault: fault["time"])
    for fault in hits:
        assert not psutil.pid_exists(fault["pid"]), fault
    for fault, failure in zip(hits, failures, strict=True):
        limit = SPARE_S + DEADLINE_S * fault["kind"].startswith("hang")
        waited = failure["timestamp"] - fault["time"]
        print(f"{fault['kind']}: {failure['child']} failed {waited:.1f} s later")
        assert waited < limit + DEADLINE_S, fault  # faults of two actors may be told crosswise
    hung = [e for e in failures if "no answer within" in e["cause"]]
    assert len(hung) == 2, failures
    for event in run.events("deadline_trace"):  # both may be late within half a minute
        trace = (run.folder / event["file"]).read_text()
        assert event["waits_for"] in {failure["child"] for failure in hung}
        assert f"for {event['waits_for']} to answer collect" in trace
        assert f"{event['waits_for']}: collect for" in trace
        assert "faulty_env.py" in trace or "no stacks:" in trace  # where py-spy may not look
    assert run.events("deadline_trace")
    assert run.events("slow_step_trace"), "two calls hung for eight seconds"
    for event in run.events("slow_step_trace"):
        trace = (run.folder / event["file"]).read_text()
        assert event["seconds"] > 2.0
        assert f"{event['child']} " in trace and f" s for {event['method']}; steps like" in trace
        assert "stacks of the driver" in trace
    lost = steps_taken(tmp_path) - run.metrics()["global_step"]
    # A call of a process that died counts for nothing; one has run, the next is in its queue.
    print(f"{lost} steps of {steps_taken(tmp_path)} lost in {len(kinds)} faults")
    assert 0 <= lost <= len(kinds) * 2 * (COLLECT_STEPS + 1)
    assert run.metrics()["restarts"] == len(kinds)
    assert "Traceback" not in run.output()


@pytest.mark.fault(
    child="env actor, too often", lost="the same each time; it stays out, others play on"
)
@pytest.mark.fault(child="evaluator or monitor, too often", lost="what they would have told")
def test_who_fails_too_often_stays_out_and_the_others_play_on(tmp_path, fault_seed):
    """First an env actor, then those that only watch."""
    rng = random.Random(fault_seed)
    extra = ["--control.max-restarts", "0", "--evaluation.every-env-steps", "400"]
    extra += ["--control.collect-deadline-s", "60"]  # nothing hangs here
    run = faulty_run(tmp_path, [("raise", rng.randrange(60, 120))], *extra)
    run.start()
    run.wait_until(lambda: run.events("child_quarantined"), "the env actor's quarantine")
    (event,) = run.events("child_quarantined")
    run.wait_until(
        lambda: run.heartbeats().get(event["child"], {}).get("state") == "quarantined",
        "the env actor's state to show",
    )
    steps, updates = run.metrics()["global_step"], run.metrics()["update"]
    run.wait_until(
        lambda: (
            run.metrics()["global_step"] > steps + 200 and run.metrics()["update"] > updates + 50
        ),
        "play and learning with the other actor",
    )
    run.wait_until(lambda: run.events("checkpoint"), "a checkpoint with the other actor")

    run.wait_until(lambda: run.events("evaluation"), "an evaluation")
    known, watchers = run.pids(), ["evaluator", "monitor"]
    rng.shuffle(watchers)
    for name in watchers:
        os.kill(known[name], signal.SIGKILL)
    run.wait_until(lambda: len(run.events("child_quarantined")) == 3, "the watchers' quarantine")
    steps, n_checkpoints = run.metrics()["global_step"], len(run.events("checkpoint"))
    run.wait_until(
        lambda: (
            run.metrics()["global_step"] > steps + 200
            and len(run.events("checkpoint")) > n_checkpoints
        ),
        "play and a checkpoint without watchers",
    )
    assert run.stop() == EXIT_RESUMABLE, run.output()
    assert event["env_actors_left"] == 1 and event["failures"] == 1
    states = {name: [] for name in [*known, event["child"]]}
    for change in run.events("child_state"):
        states[change["child"]].append(change["state"])
    assert states[event["child"]] == ["starting", "healthy", "quarantined", "stopped"]
    for name in (event["child"], *watchers):
        assert f"child_quarantined: child {name}" in run.output()
    for name in set(states) - {event["child"], *watchers}:
        assert "restarting" not in states[name] and "quarantined" not in states[name], states
    assert "Traceback" not in run.output()


def test_below_the_minimum_fleet_the_run_stops_and_says_who_where_and_why(tmp_path, fault_seed):
    after = random.Random(fault_seed).randrange(60, 120)
    limits = ["--control.max-restarts", "0", "--control.min-actors", "2"]
    run = faulty_run(tmp_path, [("raise", after)], *limits)
    run.start()
    assert run.finish() == 1
    text = run.output()
    (failure,) = run.events("child_failed")
    assert f"{failure['child']} failed 1 times within an hour" in text
    assert f"on {failure['host']}" in text and failure["host"] == os.uname().nodename
    assert "RuntimeError: the emulator broke (by a test)" in text
    assert "1 env actors are left, control.min_actors is 2" in text
    assert "Traceback" not in text.partition("error:")[0]
    assert run.events("checkpoint")[-1]["reason"] == "rescued"

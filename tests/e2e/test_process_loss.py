"""One real run whose processes are killed one after the other, every kind in a test of its own.

A test begins once all processes are healthy, and looks at what came after that; one that finds
the run ended starts it again.
"""

import json
import os
import random
import re
import signal
import time

import psutil
import pytest

from launch.control.checkpoint import CheckpointStore, verify
from tests.chaos.chaos import torment
from tests.chaos.object_store import actors_of
from tests.chaos.prometheus import exported_figures
from tests.chaos.real_run import EXIT_RESUMABLE, RealRun

STOP_BUDGET_S = 120.0  # what a run has by default
ORPHAN_LIMIT_S = 30.0
FRESH_S = 30.0  # Ray hands gauges on every ten seconds
EVERYBODY = {
    *("env-actor-0", "env-actor-1", "replay-0", "replay-1", "learner", "weight-server"),
    *("reanalyser", "evaluator", "monitor"),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    extra = ["--reanalysis.share", "0.5", "--evaluation.final-episodes", "1"]
    extra += ["--learner.n-devices", "2", "--profile", "--trace.profile-s", "12"]
    run = RealRun(tmp_path_factory.mktemp("losses") / "run", *extra)
    yield run
    run.kill()


@pytest.fixture
def run(shared) -> RealRun:
    if not shared.is_running():
        shared.start()
    wait_until_whole(shared)
    return shared


def wait_until_whole(run: RealRun) -> None:
    run.wait_until(
        lambda: (
            {name for name, beat in run.heartbeats().items() if beat["state"] == "healthy"}
            >= EVERYBODY
            and run.metrics().get("update", 0) > 40
            and run.events("checkpoint")
        ),
        "every process at work, and a checkpoint",
    )


def kill(pid: int, seed: int) -> None:
    """Within the next second, as the seed has it."""
    time.sleep(random.Random(seed).uniform(0.0, 1.0))
    os.kill(pid, signal.SIGKILL)


def wait_for_successor(run: RealRun, name: str, known: dict[str, int]) -> None:
    run.wait_until(lambda: run.pids().get(name) not in (None, known[name]), f"another {name}")


def other_ranks(run: RealRun, learner: int) -> list[psutil.Process]:
    """Processes of the learner beside its own."""
    below = psutil.Process(learner).children(recursive=True)
    return [p for p in below if "learner.rank_process" in p.cmdline()]


def only_these_failed(run: RealRun, since: float, known: dict[str, int], *names: str) -> None:
    failed = {e["child"] for e in run.events("child_failed", since)}
    assert failed <= set(names), failed
    states = [(e["child"], e["state"]) for e in run.events("child_state", since)]
    for name in set(known) - set(names):
        seen = [state for child, state in states if child == name]
        assert "restarting" not in seen and "quarantined" not in seen, (name, seen)
    assert "Traceback" not in run.output() and "constructor arguments" not in run.output()


def only_grows(values: list[float]) -> bool:
    return values == sorted(values)


def test_a_profile_has_a_row_for_every_process_and_the_driver(run):
    run.wait_until(lambda: run.events("profile_written"), "the profile")
    trace = json.loads((run.folder / "profile.json").read_text())["traceEvents"]
    rows = {e["pid"]: e["args"]["name"].split()[0] for e in trace if e["ph"] == "M"}
    assert sorted(rows.values()) == sorted({*EVERYBODY, "driver"})
    spans = {(rows[e["pid"]], e["name"]) for e in trace if e["ph"] == "X"}
    called = {"env-actor-0": "collect", "learner": "train", "replay-1": "add", "driver": "turn"}
    assert spans >= {*called.items(), ("weight-server", "pull_if_newer")}, spans


@pytest.mark.fault(child="reanalyser", lost="the segments it was working on")
def test_reanalysis_goes_on_when_its_process_is_killed(run, fault_seed):
    def shares(since: float = 0.0) -> list[float]:
        """Of the samples of each record, how many had targets searched again."""
        return [r["reanalysed_share"] or 0.0 for r in run.records(since) if "reanalysed_share" in r]

    run.wait_until(lambda: max(shares(), default=0.0) > 0.4, "the share")
    run.wait_until(lambda: run.metrics()["replay_patch_applied_total"] > 0, "figures of replay")
    began, before, known = time.time(), run.metrics(), run.pids()
    kill(known["reanalyser"], fault_seed)
    run.wait_until(lambda: run.events("child_failed", began), "the failure")
    wait_for_successor(run, "reanalyser", known)
    n_segments = run.metrics()["reanalysis_segments_total"]
    run.wait_until(lambda: run.metrics()["reanalysis_segments_total"] > n_segments, "more segments")
    back_at = time.time()
    run.wait_until(lambda: max(shares(back_at), default=0.0) > 0.4, "the share again")

    metrics = run.metrics()
    assert metrics["restarts"] == before["restarts"] + 1
    assert metrics["replay_patch_applied_total"] > before["replay_patch_applied_total"] > 0
    assert metrics["replay_patch_invalid_total"] == before["replay_patch_invalid_total"]
    only_these_failed(run, began, known, "reanalyser")


def test_prometheus_finds_every_figure_of_the_record(run):
    """With the value of a record that is a few seconds old at most."""

    def missing() -> set[str]:
        numbers = {n for n, v in run.metrics().items() if isinstance(v, int | float)}
        return numbers - set(exported_figures(run.folder))

    run.wait_until(lambda: not missing(), "a gauge for every figure")
    began = time.time()
    found: dict[str, float] = {}

    def are_newer() -> bool:
        """And all of one record, which they are not while a node's agent is handed the next."""
        found.clear()
        found.update(exported_figures(run.folder))
        same = [r for r in run.records(began) if r["timestamp"] == found.get("timestamp")]
        return bool(same) and same[0]["global_step"] == found["global_step"]

    run.wait_until(are_newer, "newer values")
    assert time.time() - found["timestamp"] < FRESH_S
    assert found["object_store_spilled_bytes"] == 0
    assert (found["processes_stalled"], found["replay_shards_alive"]) == (0, 2)
    assert found["uss_mb_max/env_actor"] > 10
    assert re.search(r"^\[env\] constructing (\d+)/\1, ", run.output(), re.M)
    assert run.heartbeats()["learner"]["rss_mb"] > 10
    names = [actor["Name"] for actor in actors_of(run.process.pid)]
    assert {name.partition("@")[0] for name in names} == EVERYBODY


def shard_bytes(run: RealRun, since: float) -> list[int]:
    """What every shard held at the newest checkpoint, by the controller's book; [] if older."""
    made = run.events("checkpoint", since)
    if not made:
        return []
    latest = run.folder / "checkpoints" / os.path.basename(made[-1]["path"])
    assert sorted(p.name for p in (latest / "replay").iterdir()) == ["shard-0", "shard-1"]
    book = json.loads((latest / "counters.json").read_text())["replay"]
    return [account["held"] for account in book["accounts"]]


@pytest.mark.fault(child="replay shard, one of several", lost="what it held")
def test_replay_goes_on_without_a_killed_shard_and_takes_it_back(run, fault_seed):
    began, before, known = time.time(), run.metrics(), run.pids()
    kill(known["replay-1"], fault_seed)
    run.wait_until(lambda: run.events("child_failed", began), "the failure")
    held = run.metrics()["replay_positions"]
    run.wait_until(lambda: run.events("replay_shard_ready", began), "its return")
    back_at, n_updates = time.time(), run.metrics()["update"]

    def has_caught_up() -> bool:
        """The successor got all that came until it held as much as the other."""
        held = shard_bytes(run, back_at)
        return bool(held) and min(held) > 0.9 * max(held)

    run.wait_until(
        lambda: (
            run.metrics()["update"] > n_updates + 100
            and run.metrics()["replay_shards_alive"] == 2
            and has_caught_up()
        ),
        "updates with both shards, which hold the same",
    )
    failed = run.events("child_failed", began)
    # Shards hold the same number of bytes, so the other has about half of all positions.
    positions = [r["replay_positions"] for r in run.records(failed[0]["timestamp"])]
    assert min(positions) > 0.4 * held
    metrics = run.metrics()
    n_lost, n_restarts = (
        metrics[name] - before[name] for name in ("replay_shards_lost", "restarts")
    )
    assert n_lost == n_restarts >= 1
    assert metrics["replay_duplicate_total"] == 0
    only_these_failed(run, began, known, "replay-1")


@pytest.mark.fault(child="evaluator", lost="the evaluation under way")
@pytest.mark.fault(child="monitor", lost="heartbeats and figures while it is away")
def test_watchers_come_back_and_nothing_else_notices(run, fault_seed):
    run.wait_until(lambda: run.events("evaluation"), "an evaluation")
    began, known = time.time(), run.pids()
    names = ["evaluator", "monitor"]
    random.Random(fault_seed).shuffle(names)
    for name in names:
        os.kill(known[name], signal.SIGKILL)
    for name in names:
        wait_for_successor(run, name, known)
    back_at = time.time()
    run.wait_until(lambda: run.events("evaluation", back_at), "an evaluation")
    assert sorted(e["child"] for e in run.events("child_failed", began)) == sorted(names)
    only_these_failed(run, began, known, *names)


@pytest.mark.fault(child="learner", lost="updates since the newest checkpoint")
@pytest.mark.fault(child="weight server", lost="nothing")
def test_a_killed_learner_goes_on_from_the_checkpoint_and_weights_are_published_again(
    run, fault_seed
):
    began, known = time.time(), run.pids()
    ranks = other_ranks(run, known["learner"])
    for name in ("learner", "weight-server"):
        kill(known[name], fault_seed)
        wait_for_successor(run, name, known)
        acted = run.every("weight_version")[-1]
        run.wait_until(
            lambda acted=acted: run.every("weight_version")[-1] > acted + 50,
            f"new weights after the {name}'s death",
        )
    assert len(ranks) == 1 and not psutil.wait_procs(ranks, timeout=ORPHAN_LIMIT_S)[1]
    (replaced,) = run.events("learner_replaced", began)
    made = [e for e in run.events("checkpoint") if e["timestamp"] < replaced["timestamp"]]
    assert replaced["source"] == made[-1]["path"]
    assert only_grows(run.every("global_step")) and only_grows(run.every("update"))
    assert only_grows(run.every("weight_version")), "acting never turns back"
    assert run.metrics()["skipped_total"] == 0
    only_these_failed(run, began, known, "learner", "weight-server")


@pytest.mark.fault(
    child="a rank of the learner, with several `learner.n_devices`",
    lost="updates since the newest checkpoint",
)
def test_another_learner_takes_over_when_one_of_its_ranks_is_killed(run, fault_seed):
    began, known = time.time(), run.pids()
    (rank,) = other_ranks(run, known["learner"])
    kill(rank.pid, fault_seed)
    wait_for_successor(run, "learner", known)
    acted = run.every("weight_version")[-1]
    run.wait_until(lambda: run.every("weight_version")[-1] > acted + 50, "new weights")
    (failure,) = run.events("child_failed", began)
    assert "RankLostError" in failure["cause"]
    (successor,) = other_ranks(run, run.pids()["learner"])
    assert successor.pid != rank.pid and not psutil.pid_exists(rank.pid)
    only_these_failed(run, began, known, "learner")


def test_sigterm_ends_in_a_checkpoint_without_orphans_and_the_same_command_goes_on(run):
    below = psutil.Process(run.process.pid).children(recursive=True)
    assert len(below) > len(EVERYBODY)
    asked_at = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    assert run.finish() == EXIT_RESUMABLE, run.output()
    _, alive = psutil.wait_procs(below, timeout=ORPHAN_LIMIT_S)
    assert time.monotonic() - asked_at < STOP_BUDGET_S + ORPHAN_LIMIT_S
    left = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not left, [(p.pid, p.cmdline()[:3]) for p in left]
    stopped, newest = run.metrics(), CheckpointStore(run.folder / "checkpoints", keep=2).newest()
    assert run.events("checkpoint")[-1]["reason"] == verify(newest)["reason"] == "stopped"

    started_at = time.time()
    run.start()
    run.wait_until(lambda: run.events("resumed", started_at), "the same command to go on")
    assert run.events("resumed", started_at)[0]["env_steps"] == stopped["global_step"]
    more = ("global_step", "update", "replay_push_total")
    run.wait_until(
        lambda: all((run.metrics().get(name) or 0) > stopped[name] for name in more),
        "play and learning beyond where it was stopped",
    )
    metrics = run.metrics()
    assert metrics["weight_version"] >= stopped["weight_version"]
    assert metrics["replay_duplicate_total"] == 0
    assert only_grows(run.every("global_step"))
    assert "Traceback" not in run.output()


def test_random_kills_are_survived(run, fault_seed):
    """A few; `make chaos` is the long form."""
    faults = torment(run, fault_seed, seconds=0.0, n_least=3, pause_s=(1.0, 4.0))
    assert len(faults) >= 3

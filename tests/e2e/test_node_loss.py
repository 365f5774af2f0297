"""Runs on several Ray nodes of this machine, one of which dies or is told to go.

The first node has room for everything but one env actor, so that it is known who lives where.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from launch.config import Config
from launch.control.call_book import CallBook
from launch.control.progress import Progress
from launch.control.ray_runtime import RayRuntime
from launch.control.roster import Roster
from launch.control.runtime import Call, CallFailed, Child
from launch.control.shards import ReplayShards
from launch.control.supervision import Supervisor
from tests.chaos.real_run import EXIT_RESUMABLE
from tests.e2e.test_env_faults import COLLECT_STEPS, faulty_run, steps_taken

OBJECT_STORE_BYTES = 100 * 1024 * 1024
# Ray asks every 3 s if nothing is said; a node is lost after five answers that are missing.
HEALTH_CHECK = {"health_check_period_ms": 1000, "health_check_initial_delay_ms": 1000}
OPEN = ["--allow-open-cluster"]  # these clusters have no token
ROOM_BUT_FOR_ONE = 3  # 1 learner, 1 env actor, 5 that ask for a tenth; the other finds 0.5


def start_cluster(monkeypatch, tmp_path, num_cpus: int) -> Iterator[Cluster]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("WARPZONE_FAULTS", str(tmp_path / "faults"))  # workers have their node's
    made = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": num_cpus,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_system_config": HEALTH_CHECK,
        },
    )
    yield made
    made.shutdown()


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    yield from start_cluster(monkeypatch, tmp_path, ROOM_BUT_FOR_ONE)


@pytest.fixture
def small_cluster(monkeypatch, tmp_path):
    yield from start_cluster(monkeypatch, tmp_path, 1)


def add_node(cluster, num_cpus: int = 1):
    """A node with room for one env actor, or for as many as it has cores."""
    return cluster.add_node(num_cpus=num_cpus, object_store_memory=OBJECT_STORE_BYTES)


def raylet_pid(node) -> int:
    return node.all_processes["raylet"][0].process.pid


def lives_on(node, pid: int | None) -> bool:
    """Workers are children of the raylet of their node."""
    parents = psutil.Process(pid).parents() if pid and psutil.pid_exists(pid) else []
    return raylet_pid(node) in [parent.pid for parent in parents]


def state_of(run, child: str) -> str:
    return [e["state"] for e in run.events("child_state") if e["child"] == child][-1]


def wait_for_progress(run, what: str) -> None:
    """Play, learning and a checkpoint, all after now."""
    before, n_checkpoints = run.metrics(), len(run.events("checkpoint"))
    run.wait_until(
        lambda: (
            run.metrics()["global_step"] > before["global_step"] + 100
            and run.metrics()["update"] > before["update"]
            and len(run.events("checkpoint")) > n_checkpoints
        ),
        what,
    )


def start_with_one_without_room(run) -> str:
    """Starts the run on the first node alone; the env actor that finds no room there."""
    run.start()
    run.wait_until(lambda: run.events("child_without_room"), "an actor without room")
    (event,) = run.events("child_without_room")
    assert event["child"].startswith("env-actor-") and event["env_actors_left"] == 1
    run.wait_until(
        lambda: "learner" in run.pids() and run.metrics().get("update", 0) > 0, "updates"
    )
    return event["child"]


def waits_for_room(run, name: str, since: float) -> bool:
    return name in [event["child"] for event in run.events("child_without_room", since)]


def loses_the_learner_only_for_a_while(run, waiting: str) -> None:
    """Its core is kept for it, although an env actor waits for one."""
    known = run.pids()["learner"]
    os.kill(known, signal.SIGKILL)
    run.wait_until(lambda: run.pids().get("learner") not in (None, known), "another learner")
    n_updates = run.metrics()["update"]
    run.wait_until(lambda: run.metrics()["update"] > n_updates, "its updates")
    assert state_of(run, waiting) == "starting"


@pytest.mark.fault(
    child="a node with env actors",
    lost="episodes under way and the steps of two collect calls, of each actor there",
)
def test_a_node_dies_and_its_actor_waits_for_another_while_the_run_goes_on(
    tmp_path, cluster, fault_seed
):
    often = ["--control.checkpoint-every-env-steps", "100"]
    run = faulty_run(tmp_path, [], "--address", cluster.address, *OPEN, *often)
    name = start_with_one_without_room(run)
    assert "1 of 2 env actors have room, on 1 node" in run.output()
    loses_the_learner_only_for_a_while(run, name)
    wait_for_progress(run, "a run with one actor")
    node = add_node(cluster)
    run.wait_until(lambda: lives_on(node, run.pids().get(name)), "the actor on the new node")
    run.wait_until(lambda: state_of(run, name) == "healthy", "its health")

    time.sleep(random.Random(fault_seed).uniform(1.0, 4.0))
    killed_at = time.time()
    os.kill(raylet_pid(node), signal.SIGKILL)
    run.wait_until(lambda: run.events("child_failed", killed_at), "the failure")
    (failure,) = run.events("child_failed", killed_at)
    print(f"noticed {failure['timestamp'] - killed_at:.1f} s after the node's death")
    assert failure["child"] == name
    assert failure["timestamp"] - killed_at < 60.0
    run.wait_until(lambda: waits_for_room(run, name, killed_at), "its wait for room")
    wait_for_progress(run, "a run without the node")
    assert state_of(run, name) == "starting"

    another = add_node(cluster)
    run.wait_until(lambda: state_of(run, name) == "healthy", "its return")
    run.wait_until(lambda: lives_on(another, run.pids().get(name)), "the actor on another node")
    wait_for_progress(run, "a run with both")
    assert run.stop() == EXIT_RESUMABLE, run.output()
    failed = [e["child"] for e in run.events("child_failed")]
    assert failed == ["learner", name]  # waiting is no failure
    metrics = run.metrics()
    lost = steps_taken(tmp_path) - metrics["global_step"]
    print(f"{lost:.0f} steps lost")
    assert 0 <= lost <= 2 * (COLLECT_STEPS + 1)
    assert metrics["restarts"] == 2
    assert metrics["replay_shards_lost"] == 0
    assert "Traceback" not in run.output()


@pytest.mark.fault(child="a node that is drained first", lost="episodes under way")
@pytest.mark.fault(child="the node of the learner", lost="updates since the newest checkpoint")
def test_a_draining_node_is_left_in_time_and_a_lost_learner_starts_where_there_is_room(
    tmp_path, small_cluster, fault_seed
):
    """The first node is too small for a learner or an env actor; two others have room for one."""
    nodes = [add_node(small_cluster) for _ in range(2)]
    never = ["--control.checkpoint-every-env-steps", "1000000"]
    run = faulty_run(tmp_path, [], "--address", small_cluster.address, *OPEN, *never)
    run.start()
    run.wait_until(
        lambda: "learner" in run.pids() and run.metrics().get("update", 0) > 0, "updates"
    )
    (home,) = [node for node in nodes if lives_on(node, run.pids()["learner"])]
    (neighbour,) = [node for node in nodes if node is not home]
    run.wait_until(
        lambda: lives_on(home, run.pids().get("monitor")), "the monitor beside the learner"
    )
    rng = random.Random(fault_seed)
    leaves_a_draining_node(run, small_cluster, neighbour, rng)
    loses_the_learners_node(run, small_cluster, home, rng)

    assert run.stop() == EXIT_RESUMABLE, run.output()
    lost = [e["child"] for e in run.events("child_failed")]
    assert set(lost) == {"learner", "monitor"}, "which lives beside it"
    assert run.metrics()["restarts"] == len(lost)
    # No call of an env actor was under way on a node that went.
    assert steps_taken(tmp_path) == run.metrics()["global_step"]
    assert "Traceback" not in run.output()


def leaves_a_draining_node(run, cluster, node, rng: random.Random) -> None:
    """Its env actor gets no more work there; then there is a checkpoint; then it goes elsewhere."""
    refuge = add_node(cluster, num_cpus=2)  # another env actor has been waiting for room
    run.wait_until(
        lambda: all(state_of(run, f"env-actor-{i}") == "healthy" for i in range(2)),
        "both env actors",
    )
    run.wait_until(lambda: len(env_actors_on(run, node)) == 1, "one of them on the node")
    ((name, known),) = env_actors_on(run, node).items()
    assert not run.events("checkpoint")
    time.sleep(rng.uniform(0.0, 3.0))
    drain(cluster.address, node.node_id)
    run.wait_until(lambda: run.events("node_draining"), "the notice")
    (notice,) = run.events("node_draining")
    assert notice["node"] == node.node_id and notice["children"] == [name]
    run.wait_until(lambda: run.events("checkpoint"), "the checkpoint")
    (checkpoint,) = run.events("checkpoint")
    assert checkpoint["timestamp"] - notice["timestamp"] < 15.0
    run.wait_until(lambda: name in env_actors_on(run, refuge), "the actor elsewhere")
    run.wait_until(lambda: state_of(run, name) == "healthy", "its health there")
    assert not psutil.pid_exists(known)
    states = [e["state"] for e in run.events("child_state") if e["child"] == name]
    assert states[-5:] == ["healthy", "draining", "restarting", "starting", "healthy"]
    os.kill(raylet_pid(node), signal.SIGKILL)
    steps = run.metrics()["global_step"]
    run.wait_until(
        lambda: run.metrics()["global_step"] > steps + 100, "play without the drained node"
    )
    assert not run.events("child_failed")
    assert run.metrics()["restarts"] == 0


def env_actors_on(run, node) -> dict[str, int]:
    """Pids, by name."""
    found = run.pids().items()
    return {name: pid for name, pid in found if name.startswith("env-") and lives_on(node, pid)}


def loses_the_learners_node(run, cluster, home, rng: random.Random) -> None:
    """The learner waits until a node has room, and goes on from the checkpoint."""
    known = run.pids()["learner"]
    time.sleep(rng.uniform(0.0, 4.0))
    killed_at = time.time()
    os.kill(raylet_pid(home), signal.SIGKILL)
    run.wait_until(lambda: waits_for_room(run, "learner", killed_at), "a learner without room")
    add_node(cluster)
    run.wait_until(lambda: run.pids().get("learner") not in (None, known), "another learner")
    before = run.metrics()
    run.wait_until(
        lambda: (
            run.metrics()["global_step"] > before["global_step"] + 100
            and run.metrics()["update"] > before["update"]
        ),
        "play and learning with the new learner",
    )
    (replaced,) = run.events("learner_replaced")
    assert replaced["source"] == run.events("checkpoint")[-1]["path"]
    versions = run.every("weight_version")
    assert versions == sorted(versions), "acting never turns back"
    assert run.metrics()["skipped_total"] == 0


def drain(address: str, node_id: str) -> None:
    """What a preempted node's agent says, in a process of its own."""
    subprocess.run(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address),
            *("--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"),
            *("--reason-message", "preempted (by a test)", "--deadline-remaining-seconds", "300"),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )


class Player:
    """Its segments are too large to travel with the answer: they stay on its node."""

    def collect(self, n_bytes: int) -> tuple[int, bytes]:
        return n_bytes, bytes(n_bytes)


class Shard:
    def add(self, payload: bytes) -> int:
        return len(payload)


class Events:
    def __init__(self):
        self.kinds = []

    def event(self, kind, **fields):
        self.kinds.append(kind)


@dataclass
class OneShard:
    replays: list[Child]


def first_answer(calls: CallBook) -> Call:
    while True:
        for call in calls.ready():
            return call


def test_segments_that_went_with_a_node_are_counted_out_and_nobody_is_blamed(cluster, fault_seed):
    n_bytes = random.Random(fault_seed).randrange(200_000, 2_000_000)
    node = cluster.add_node(resources={"there": 1}, object_store_memory=OBJECT_STORE_BYTES)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        runtime, events = RayRuntime(None, num_cpus=0, num_gpus=0), Events()
        there = ray.remote(Player).options(resources={"there": 1}).remote()
        player = Child("env-actor-0", "env_actor", there)
        # Not on the node that dies, where Ray might put it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        shard = ray.remote(Shard).options(scheduling_strategy=here).remote()
        fleet = OneShard([Child("replay-0", "replay", shard)])
        calls = CallBook(runtime, 90.0)
        shards = ReplayShards(calls, fleet, 1)
        calls.issue(player, "collect", n_bytes, with_payload=True)
        made = first_answer(calls)
        assert runtime.value(made) == n_bytes
        assert runtime.place_of(player).node_id == node.node_id
        os.kill(raylet_pid(node), signal.SIGKILL)
        shards.add(made.payload, n_bytes, player)
        with pytest.raises(CallFailed) as caught:
            runtime.value(first_answer(calls))
        assert caught.value.lost_object
        supervisor = Supervisor(
            Config(),
            runtime,
            fleet,
            calls,
            Roster(fleet, events, 0),
            shards,
            events,
            Progress(1),
            checkpoints=None,
        )
        assert supervisor.recover(caught.value) == []
        assert events.kinds == ["segments_lost"]
        assert shards.book.accounts[0].in_flight == 0 and shards.is_serving(fleet.replays[0])
    finally:
        ray.shutdown()

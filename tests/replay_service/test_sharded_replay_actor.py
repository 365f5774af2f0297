"""Batches over several replay processes, on a real Ray: shards that die, hang and come back."""

import os
import pickle
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from replay_service import JointTextSource, ReplayConfig, TargetConfig
from replay_service.replay_actor import MAX_PENDING_UPDATES, ReplayActor
from replay_service.sharded_replay_actor import RayJointBatchSource, RayTextShard
from tests.replay_service.test_replay_actor import kill

CONFIG = ReplayConfig(capacity_mb=2, num_shards=2, min_positions=1)
BATCH = 16
LIMIT_S = 120


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    root = str(Path(__file__).resolve().parents[2])
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100_000_000,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()


@pytest.fixture
def shards(ray_session, image_spec, make_segment):
    """Two shards with 30 positions each, which Ray restarts when they die."""
    remote = ray.remote(ReplayActor).options(num_cpus=0, max_restarts=-1, max_task_retries=0)
    handles = [
        remote.remote(CONFIG.of_one_shard, TargetConfig(), image_spec, 0, shard)
        for shard in range(2)
    ]
    for index, handle in enumerate(handles):
        fill(handle, make_segment(image_spec, 30, sequence=index, with_text=True))
    yield handles
    for handle in handles:
        ray.kill(handle)


def fill(handle, segment) -> None:
    ray.get(handle.add.remote([segment]))


def make_source(shards, **settings) -> RayJointBatchSource:
    """As it reaches the learner's process: through Ray, which makes arrays read-only."""
    return ray.get(ray.put(RayJointBatchSource(shards, CONFIG, BATCH, seed=0, **settings)))


def shard_sizes(batch) -> dict[int, int]:
    return {part.shard: len(part) for part in batch.handles}


def until(condition, what: str):
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
    pytest.fail(f"waited {LIMIT_S} s for {what}")


def test_shards_serve_and_priorities_return_to_the_right_one(shards):
    source = make_source(shards)
    for _ in range(6):
        batch = source.next()
        assert len(batch) == BATCH and set(shard_sizes(batch)) == {0, 1}
        batch.obs.zero_()  # the learner owns what it got
        priorities = np.concatenate([np.full(len(p), 1.0 + 8 * p.shard) for p in batch.handles])
        source.update_priorities(batch.handles, priorities)
    stats = ray.get([shard.stats.remote() for shard in shards])
    assert [s["replay_stale_total"] for s in stats] == [0, 0]
    assert [s["replay_priority_p99"] for s in stats] == [1.0, 9.0]
    batch = until(lambda: (b := source.next()) and len(b.handles[1]) > 10 and b, "the new masses")
    assert source.n_dropped_updates == 0 and not source.lost


def test_a_batch_travels_with_the_handles_of_all_shards(shards):
    batch = make_source(shards).next()
    there = pickle.loads(pickle.dumps(batch))
    assert shard_sizes(there) == shard_sizes(batch)
    assert (there.importance == batch.importance).all()


def test_the_others_serve_when_one_is_killed_and_its_successor_is_taken_back(
    shards, make_segment, image_spec
):
    source = make_source(shards, patience_s=1.0)
    before = source.next()
    os.kill(ray.get(shards[1].ping.remote()), signal.SIGKILL)
    until(lambda: shard_sizes(source.next()) == {0: BATCH}, "batches without the dead shard")
    until(lambda: source.next() and not source.lost, "the successor")
    assert shard_sizes(source.next()) == {0: BATCH}  # it is empty
    fill(shards[1], make_segment(image_spec, 30, sequence=1))  # the same rows as before
    until(lambda: set(shard_sizes(source.next())) == {0, 1}, "batches with the successor")
    late = next(part for part in before.handles if part.shard == 1)
    assert ray.get(shards[1].update_priorities.remote(late, np.full(len(late), 50.0))) == 0
    assert ray.get(shards[1].stats.remote())["replay_stale_total"] == len(late)
    now = next(part for part in source.next().handles if part.shard == 1)
    assert ray.get(shards[1].update_priorities.remote(now, np.full(len(now), 50.0))) == len(now)


def test_a_hung_shard_is_waited_for_once(shards):
    source = make_source(shards, patience_s=4.0)
    batch = source.next()
    pid = ray.get(shards[0].ping.remote())
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: shard_sizes(source.next()) == {1: BATCH}, "batches without it")
        started = time.monotonic()
        for _ in range(5):
            assert shard_sizes(source.next()) == {1: BATCH}
        assert time.monotonic() - started < 4.0  # the patience that one more wait would take
        for _ in range(MAX_PENDING_UPDATES + 3):
            source.update_priorities(batch.handles, np.ones(BATCH))
        assert source.n_dropped_updates >= 3
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: set(shard_sizes(source.next())) == {0, 1}, "the shard that goes on")


def test_without_any_shard_it_is_said(shards, ray_session, image_spec):
    source = make_source(shards, patience_s=1.0, timeout_s=5.0)
    source.next()
    for shard in shards:
        kill(shard)
    with pytest.raises(RuntimeError, match="all 2 replay shards are gone"):
        for _ in range(5):
            source.next()
    remote = ray.remote(ReplayActor).options(num_cpus=0)
    empty = [
        remote.remote(CONFIG.of_one_shard, TargetConfig(), image_spec, 0, shard)
        for shard in range(2)
    ]
    with pytest.raises(ValueError, match="none of 2 replay shards holds a trainable position"):
        make_source(empty).next()


def test_text_goes_on_without_a_dead_shard(shards):
    source = JointTextSource([RayTextShard(shard) for shard in shards], 8, seed=0)
    assert len(source.next().prompt) == 8
    kill(shards[0])
    batch = source.next()
    assert {prompt.split()[-1] for prompt in batch.prompt} == {"1"}
    kill(shards[1])
    assert source.next() is None


@pytest.mark.parametrize(
    "changed", [{"batch_size": 0}, {"depth": 0}, {"timeout_s": 0}, {"patience_s": 0}]
)
def test_client_settings_are_checked(changed):
    with pytest.raises(ValueError, match="at least 1 and timeout_s positive"):
        RayJointBatchSource([], CONFIG, **({"batch_size": 8, "seed": 0} | changed))

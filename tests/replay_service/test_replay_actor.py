"""The actor shell and the sampling client, on a real Ray."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from replay_service import Replay, ReplayConfig, TargetConfig, TargetPatch
from replay_service.replay_actor import (
    MAX_PENDING_UPDATES,
    RayBatchSource,
    RayReanalysisSource,
    ReplayActor,
)

CONFIG = ReplayConfig(capacity_mb=1, min_positions=1)


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


def kill(actor) -> None:
    """Returns when it is gone: it may answer some calls before."""
    ray.kill(actor)
    with pytest.raises(ray.exceptions.RayActorError):
        while True:
            ray.get(actor.ping.remote())


@pytest.fixture
def actor(ray_session, image_spec):
    handle = (
        ray.remote(ReplayActor).options(num_cpus=0).remote(CONFIG, TargetConfig(), image_spec, 0)
    )
    yield handle
    ray.kill(handle)


def test_without_ray_the_shell_is_a_replay(make_segment, image_spec, tmp_path):
    shell = ReplayActor(config=CONFIG, targets=TargetConfig(), spec=image_spec, seed=0)
    assert shell.ping() == os.getpid()
    assert shell.add([make_segment(image_spec, 30, with_text=True)]).n_positions == 30
    batch = shell.sample(4)
    assert shell.update_priorities(batch.handles, np.ones(4)) == 4
    assert len(shell.sample_text(3).prompt) == 3
    shell.save(tmp_path)
    other = ReplayActor(config=CONFIG, targets=TargetConfig(), spec=image_spec, seed=1)
    other.load(tmp_path)
    assert torch.equal(other.sample(4).obs, shell.sample(4).obs)


def test_segments_go_in_by_reference_and_batches_equal_a_local_replay(
    actor, make_segment, image_spec
):
    segments = [make_segment(image_spec, 30, sequence=i).with_checksum() for i in range(3)]
    report = ray.get(actor.add.remote(ray.put(segments)))
    assert (report.n_positions, report.n_rejected) == (90, 0)
    local = Replay(CONFIG, TargetConfig(), image_spec, 0)
    local.add(segments)
    source = RayBatchSource(actor, batch_size=8)
    for _ in range(5):
        batch, expected = source.next(), local.sample(8)
        for name, tensor in expected._tensors().items():
            assert torch.equal(getattr(batch, name), tensor), name
        batch.obs.zero_()  # the learner owns what it got
    source.update_priorities(batch.handles, np.full(8, 50.0))
    source.next(), source.next(), source.next()
    assert ray.get(actor.stats.remote())["replay_priority_p99"] > 1.0


def test_an_error_of_replay_reaches_the_learner_and_is_not_final(actor, make_segment, image_spec):
    source = RayBatchSource(actor, batch_size=8)
    with pytest.raises(ValueError, match="no trainable position"):
        source.next()
    ray.get(actor.add.remote([make_segment(image_spec, 30)]))
    assert len(source.next()) == 8


def test_a_hung_replay_is_named_and_updates_are_dropped(actor, make_segment, image_spec):
    ray.get(actor.add.remote([make_segment(image_spec, 30)]))
    source = RayBatchSource(actor, batch_size=8, timeout_s=0.5)
    batch = RayBatchSource(actor, batch_size=8, depth=1).next()
    pid = ray.get(actor.ping.remote())
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(MAX_PENDING_UPDATES + 4):
            source.update_priorities(batch.handles, np.ones(8))
        assert source.n_dropped_updates == 4
        with pytest.raises(TimeoutError, match=r"waited 0\.5 s for replay to answer sample\(8\)"):
            source.next()
    finally:
        os.kill(pid, signal.SIGCONT)
    ray.get(actor.ping.remote())
    assert len(source.next()) == 8
    source.update_priorities(batch.handles, np.ones(8))
    assert source.n_dropped_updates == 4


def test_a_dead_replay_is_named(ray_session, make_segment, image_spec):
    handle = (
        ray.remote(ReplayActor).options(num_cpus=0).remote(CONFIG, TargetConfig(), image_spec, 0)
    )
    ray.get(handle.add.remote([make_segment(image_spec, 30)]))
    source = RayBatchSource(handle, batch_size=8)
    source.next()
    kill(handle)
    with pytest.raises(RuntimeError, match="replay actor is gone"):
        for _ in range(5):
            source.next()


def test_segments_to_search_again_come_from_all_shards_and_patches_go_home(
    ray_session, make_segment, image_spec
):
    """One of the shards dies on the way: it is passed over, and its patch is lost."""
    start = ray.remote(ReplayActor).options(num_cpus=0).remote
    shards = [start(CONFIG, TargetConfig(), image_spec, 0, shard=i) for i in range(2)]
    for i, shard in enumerate(shards):
        ray.get(shard.add.remote([make_segment(image_spec, 30, sequence=i, with_text=True)]))
    source = RayReanalysisSource(shards)
    assert source.n_shards == 2
    requests = [request for _ in range(2) for request in source.next(4)]
    assert [request.segment_id[2] for request in requests] == [0, 1]
    assert requests[1].prompt[1] == "state 1 of 1" and len(requests[1].options[1]) == 3
    patches = [
        TargetPatch(
            request.handles,
            np.tile(np.array([0.25, 0.5, 0.25], np.float32), (30, 1)),
            np.zeros(30, np.float32),
            target_version=9,
        )
        for request in requests
    ]
    assert source.patch(patches) == 60
    batch = RayBatchSource(shards[1], batch_size=8).next()
    assert (batch.target_version == 9).all() and (batch.policy[:, 0, 1] == 0.5).all()
    kill(shards[1])
    ray.get(shards[0].add.remote([make_segment(image_spec, 30, sequence=5)]))
    assert source.patch(patches) == 0
    assert [len(source.next(4)) for _ in range(2)] == [2, 0]
    assert source.n_failures == 2
    ray.kill(shards[0])


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"depth": 0}, {"timeout_s": 0}])
def test_client_settings_are_checked(settings):
    with pytest.raises(ValueError, match="at least 1 and timeout_s positive"):
        RayBatchSource(None, **({"batch_size": 8} | settings))

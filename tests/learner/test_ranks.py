"""A learner of two processes: the same updates as one, and what becomes of it when one is lost."""

import os
import signal
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.config import LearnerConfig, StepScales
from learner.learner import Learner
from learner.ranks import RankLostError
from tests.learner.test_learner import MODEL, SPEC, TARGETS, Batches, make_batch, parameters

CLOSE = {"rtol": 0.0, "atol": 1e-5}


def make_learner(n_devices: int) -> Learner:
    # Two parts of each rank's part, so that an update is made of four.
    config = LearnerConfig(warmup_updates=0, accumulate=2, n_devices=n_devices, watch_every=10_000)
    return Learner(config, MODEL, TARGETS, SPEC, "cpu", seed=3)


@pytest.fixture(scope="module")
def two():
    learner = make_learner(n_devices=2)
    yield learner
    learner.close()


def assert_equal(one: Learner, two: Learner) -> None:
    """Weights of both networks, and the moments of the optimizer."""
    for network in ("model", "target_model"):
        ours, theirs = (getattr(learner, network).state_dict() for learner in (one, two))
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], **CLOSE, msg=f"{network} {name}")
    for ours, theirs in zip(one.model.parameters(), two.model.parameters(), strict=True):
        theirs = two._optimizer.state[theirs]
        for name, value in one._optimizer.state[ours].items():
            torch.testing.assert_close(value, theirs[name], **CLOSE, msg=name)


def assert_same_answers(ours, theirs) -> None:
    (metrics, priorities), (same_metrics, same_priorities) = ours, theirs
    assert same_metrics == pytest.approx(metrics, abs=1e-5, rel=1e-5)
    np.testing.assert_allclose(same_priorities, priorities, rtol=0, atol=1e-5)


def test_twenty_updates_of_two_ranks_are_those_of_one(two):
    one = make_learner(n_devices=1)
    for step in range(20):
        batch = make_batch(n_samples=7, seed=step)
        assert_same_answers(one.update(batch), two.update(batch))
    assert_equal(one, two)
    assert two.updates == 20 and two.version == one.version


def test_scales_of_one_call_reach_every_rank(two, tmp_path):
    two.save(tmp_path)
    one = make_learner(n_devices=1)
    one.load(tmp_path)
    for learner in (one, two):
        learner.train(2, Batches(), None, StepScales(0.5, 40.0))
    assert_equal(one, two)


@settings(max_examples=25)
@given(n_samples=st.integers(2, 9), seed=st.integers(0, 999), data=st.data())
def test_an_update_is_that_of_one_rank_from_the_same_checkpoint(
    two, tmp_path_factory, n_samples, seed, data
):
    """Samples weigh differently, some have no valid step; a checkpoint fits any number of ranks."""
    folder = tmp_path_factory.mktemp("saved")
    two.save(folder)
    one = make_learner(n_devices=1)
    one.load(folder)
    batch = make_batch(n_samples, seed)
    weights = st.lists(st.floats(0.0, 1.0), min_size=n_samples, max_size=n_samples)
    batch.importance[:] = torch.tensor(data.draw(weights))
    batch.valid[:, data.draw(st.integers(1, 2)) :] = False
    batch.valid[data.draw(st.integers(0, n_samples - 1))] = False
    assert_same_answers(one.update(batch), two.update(batch))
    assert_equal(one, two)
    one.save(folder)
    two.load(folder)
    assert_same_answers(one.update(batch), two.update(batch))


@pytest.mark.parametrize("sample", [0, 5])
def test_a_bad_number_of_either_rank_changes_nothing(two, sample):
    before, n_skipped = parameters(two), two._counters.skipped
    batch = make_batch(n_samples=6, seed=1)
    batch.n_step_return[sample, 0] = torch.nan
    metrics, _ = two.update(batch)
    assert not np.isfinite(metrics["loss_total"]) and not np.isfinite(metrics["grad_norm"])
    assert two._counters.skipped == n_skipped + 1
    for name, value in parameters(two).items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    two.update(make_batch(n_samples=6, seed=2))
    assert all(torch.isfinite(value).all() for value in parameters(two).values())


def test_gradients_are_clipped_once_all_are_added(two):
    """Parts that are clipped on their own would add up to more."""
    one = make_learner(n_devices=1)
    one.model.load_state_dict(two.model.state_dict())
    one.target_model.load_state_dict(two.target_model.state_dict())
    one._rng.bit_generator.state = two._rng.bit_generator.state
    batch = make_batch(n_samples=6, seed=4)
    batch.n_step_return.mul_(50.0)
    for learner in (one, two):
        learner.config = replace(learner.config, grad_clip=1e-3)
    assert_same_answers(one.update(batch), two.update(batch))
    ours, theirs = (
        torch.cat([p.grad.flatten() for p in learner.model.parameters()]) for learner in (one, two)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)
    assert float(theirs.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_ranks_listen_on_loopback_only(two):
    (pid,) = two.gradients.pids
    sockets = psutil.Process(pid).net_connections("inet")
    listening = [each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN]
    assert listening and set(listening) <= {"127.0.0.1", "::1"}, listening


def test_a_killed_rank_is_told_of_at_once_and_the_others_end(two):
    """The last one with this learner, which is of no use afterwards."""
    (pid,) = two.gradients.pids
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(RankLostError, match="rank"):
        two.update(make_batch(n_samples=6))
    assert time.monotonic() - began < 30.0
    two.close()
    assert not psutil.pid_exists(pid)


def test_what_a_rank_raises_is_told_by_the_learner():
    learner = make_learner(n_devices=2)
    batch = make_batch(n_samples=6)
    batch.action[5] = 99  # in the other rank's part
    with pytest.raises(RuntimeError, match="rank 1 of the learner failed: IndexError"):
        learner.update(batch)
    learner.close()

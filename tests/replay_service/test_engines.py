"""A replay with the torch engine against one with the numba engine: the same answers to all."""

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service import Handles, Replay, ReplayConfig, TargetConfig, TargetPatch
from replay_service.sampler import PrioritySampler
from replay_service.storage import bytes_per_step
from replay_service.tally import MAX_PENDING
from replay_service.torch_sampler import TorchSampler

TARGETS = TargetConfig(unroll_steps=2, n_step=2)
TIMES = [f"replay_{name}_ms" for name in ("sample", "draw", "gather", "targets")]


def make_replay(spec, engine: str, n_rows: int = 80, **config) -> Replay:
    capacity_mb = (n_rows + 0.5) * bytes_per_step(spec) / 1e6
    config = {"min_positions": 1, "beta_steps": 10, "max_weight_lag": 12} | config
    return Replay(ReplayConfig(capacity_mb=capacity_mb, engine=engine, **config), TARGETS, spec, 5)


def assert_same_batch(ours, theirs) -> None:
    assert isinstance(ours.handles.slot, torch.Tensor), "slots stay on the device"
    held = ours.handles.on_host()
    np.testing.assert_array_equal(held.slot, theirs.handles.slot)
    np.testing.assert_array_equal(held.generation, theirs.handles.generation)
    for name, tensor in theirs._tensors().items():
        torch.testing.assert_close(getattr(ours, name), tensor, rtol=1e-6, atol=0, msg=name)


operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 15)),
        st.tuples(st.just("sample"), st.integers(1, 12)),
        st.tuples(st.just("update"), st.integers(0, 9)),
        st.tuples(st.just("patch"), st.integers(0, 9)),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    min_size=3,
    max_size=40,
)


@settings(max_examples=60)
@given(operations=operations)
def test_any_interleaving_of_verbs_gives_the_same_answers(
    operations, make_segment, vector_spec, tmp_path_factory
):
    replays = [make_replay(vector_spec, engine) for engine in ("torch", "numba")]
    assert isinstance(replays[0].sampler, TorchSampler)
    assert isinstance(replays[1].sampler, PrioritySampler)
    sequence, handles, requests = 0, None, []
    for verb, number in operations:
        if verb == "add":
            sequence += 1
            segment = make_segment(vector_spec, number, sequence=sequence, with_text=number % 2)
            assert replays[0].add([segment]) == replays[1].add([segment])
            requests += [replay.least_refreshed(1)[0] for replay in replays][:1]
        elif verb == "sample" and sequence:
            ours, theirs = (replay.sample(number, sequence + 3) for replay in replays)
            assert_same_batch(ours, theirs)
            handles = (ours.handles, theirs.handles)
        elif verb == "update" and handles:
            slots = handles[1].slot
            priority = np.where(slots % 7 == number, np.nan, slots * 0.1 + number)
            for replay, held in zip(replays, handles, strict=True):
                replay.update_priorities(held, priority)
        elif verb == "patch" and requests:
            request = requests[number % len(requests)]
            policy = np.full((len(request), 2), 0.5)
            root_value = np.arange(len(request)) / 8
            patch = TargetPatch(
                request.handles, policy, root_value, request.target_version + number
            )
            assert replays[0].patch([patch]) == replays[1].patch([patch])
        elif verb == "restart":
            replays = [restarted(replay, vector_spec, tmp_path_factory) for replay in replays]
            handles = None
        stats, expected = (replay.stats() for replay in replays)
        for name in set(expected) - set(TIMES):
            assert stats[name] == pytest.approx(expected[name], rel=1e-6), name


def restarted(replay: Replay, spec, tmp_path_factory) -> Replay:
    folder = tmp_path_factory.mktemp("replay")
    replay.save(folder)
    again = make_replay(spec, replay.config.engine)
    again.load(folder)
    return again


def test_a_replay_may_be_continued_by_the_other_engine(make_segment, vector_spec, tmp_path):
    replay = make_replay(vector_spec, "torch")
    for sequence in range(12):
        replay.add([make_segment(vector_spec, 9, sequence=sequence, with_legal=True)])
        replay.update_priorities(replay.sample(4).handles, torch.full((4,), sequence + 1.0))
    replay.save(tmp_path)
    again = make_replay(vector_spec, "numba")
    again.load(tmp_path)
    for _ in range(5):
        assert_same_batch(replay.sample(8), again.sample(8))
    assert json.loads((tmp_path / "replay.json").read_text())["format_version"] == 5


def test_handles_become_arrays_when_they_travel(make_segment, vector_spec):
    replay = make_replay(vector_spec, "torch")
    replay.add([make_segment(vector_spec, 20)])
    batch = replay.sample(6)
    there = pickle.loads(pickle.dumps(batch))
    assert isinstance(there.handles.slot, np.ndarray)
    np.testing.assert_array_equal(there.handles.slot, batch.handles.slot.numpy())
    assert replay.update_priorities(there.handles, np.ones(6, dtype=np.float32)) == 6
    assert replay.update_priorities(Handles(0, np.zeros(0, int), np.zeros(0, int)), np.ones(0)) == 0


def test_sampling_and_updating_never_read_from_the_device(make_segment, vector_spec, monkeypatch):
    """On a GPU each of these would make the host wait; stats may, sample and update must not."""
    replay = make_replay(vector_spec, "torch")
    replay.add([make_segment(vector_spec, 20)])

    def refuse(*_args, **_kwargs):
        raise AssertionError("the host looked at a tensor")

    for name in ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    for _ in range(2 * MAX_PENDING):
        batch = replay.sample(6, newest_version=3)
        replay.update_priorities(batch.handles, batch.importance)
    monkeypatch.undo()
    assert replay.stats()["replay_stale_total"] == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_replay_on_a_gpu_answers_like_one_on_the_host(make_segment, image_spec):
    replays = [
        make_replay(image_spec, engine, device=device)
        for device, engine in (("cuda", "torch"), ("cpu", "torch"))
    ]
    for sequence in range(2 * MAX_PENDING):
        segment = make_segment(image_spec, 9, sequence=sequence, with_text=True, with_legal=True)
        assert replays[0].add([segment]) == replays[1].add([segment])
        torch.cuda.set_sync_debug_mode("error")
        ours = replays[0].sample(8)
        replays[0].update_priorities(ours.handles, ours.importance)
        torch.cuda.set_sync_debug_mode("default")
        theirs = replays[1].sample(8)
        assert_same_batch(ours.to("cpu"), theirs)
        replays[1].update_priorities(theirs.handles, theirs.importance)

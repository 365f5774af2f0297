"""Windows, masks and n-step targets against a slow loop over steps."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service import GameSpec, Replay, ReplayConfig, TargetConfig


def observation(segment, step: int) -> np.ndarray:
    stack = segment.header.seed  # set by the test to the frame stack
    return np.concatenate(list(segment.obs[step : step + stack]), axis=0)


def reference_window(segment, start: int, config: TargetConfig) -> dict[str, list]:
    """One sample, step by step, in the words of the contract."""
    n_steps, gamma = len(segment), config.discount
    ended = segment.is_terminated
    window = {name: [] for name in ("obs", "reward", "ret", "discount", "index", "valid")}
    window |= {"policy": [], "root_value": [], "action": []}
    for offset in range(config.context_steps):
        window["obs"].append(observation(segment, min(start + offset, n_steps)))
        if offset < config.context_steps - 1:
            k = start + offset
            window["action"].append(int(segment.action[k]) if k < n_steps else None)
    for offset in range(config.unroll_steps):
        k = start + offset
        n_ahead = max(min(config.n_step, n_steps - k), 0)
        is_step = k < n_steps
        met_terminal = ended and k + config.n_step >= n_steps
        n_actions = segment.policy.shape[1]
        window["reward"].append(segment.reward[k] if is_step else 0.0)
        window["ret"].append(sum(gamma**i * float(segment.reward[k + i]) for i in range(n_ahead)))
        window["discount"].append(0.0 if met_terminal else gamma**n_ahead)
        window["index"].append(offset + n_ahead)
        window["valid"].append(is_step or ended)
        window["policy"].append(segment.policy[k] if is_step else np.zeros(n_actions))
        window["root_value"].append(segment.root_value[k] if is_step else 0.0)
    return window


def check_sample(batch, i: int, segment, start: int, config: TargetConfig) -> None:
    expected = reference_window(segment, start, config)
    np.testing.assert_array_equal(batch.obs[i].numpy(), np.stack(expected["obs"]))
    for actual, wanted in zip(batch.action[i].tolist(), expected["action"], strict=True):
        assert 0 <= actual < segment.policy.shape[1]
        assert wanted is None or actual == wanted
    for name, wanted in (
        ("reward", "reward"),
        ("n_step_return", "ret"),
        ("bootstrap_discount", "discount"),
        ("bootstrap_index", "index"),
        ("valid", "valid"),
        ("policy", "policy"),
        ("root_value", "root_value"),
    ):
        actual = getattr(batch, name)[i].numpy()
        np.testing.assert_allclose(actual, np.array(expected[wanted]), atol=1e-5, err_msg=name)
    n_legal = min(max(len(segment) - start, 0), config.unroll_steps)
    if batch.legal is not None:
        wanted = np.ones((config.unroll_steps, segment.policy.shape[1]), dtype=bool)
        if segment.legal is not None:
            wanted[:n_legal] = segment.legal[start : start + n_legal]
        np.testing.assert_array_equal(batch.legal[i].numpy(), wanted)
    assert batch.weight_version[i] == segment.header.weight_version_min


segments = st.lists(
    st.tuples(
        st.integers(1, 20),  # steps
        st.sampled_from(["terminated", "truncated", "open"]),
        st.booleans(),  # is a seam: the last steps are context only
        st.booleans(),  # legal masks
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=120)
@given(
    plan=segments,
    unroll=st.integers(1, 6),
    n_step=st.integers(1, 6),
    frame_stack=st.integers(1, 3),
    is_image=st.booleans(),
    capacity_rows=st.integers(60, 160),
)
def test_batches_equal_the_loop_reference(
    make_segment, plan, unroll, n_step, frame_stack, is_image, capacity_rows
):
    shape, dtype = ((2, 3, 3), "uint8") if is_image else ((3,), "float32")
    spec = GameSpec(shape, dtype, n_actions=4, frame_stack=frame_stack)
    config = TargetConfig(unroll_steps=unroll, n_step=n_step, discount=0.9)
    per_row = 1e-6 * 200
    replay = Replay(
        ReplayConfig(capacity_mb=per_row * capacity_rows, min_positions=1), config, spec, seed=3
    )
    added = {}
    for sequence, (n_steps, ending, is_seam, with_legal) in enumerate(plan):
        n_trainable = n_steps
        if is_seam and n_steps > config.context_steps:
            ending, n_trainable = "open", n_steps - config.context_steps
        segment = make_segment(
            spec,
            n_steps,
            sequence=sequence,
            ending=ending,
            n_trainable=n_trainable,
            with_legal=with_legal,
        )
        object.__setattr__(segment.header, "seed", frame_stack)
        added[sequence] = segment
        replay.add([segment])

    batch = replay.sample(16)
    where = {stored.start: stored for stored in replay.ring.live}
    for i, slot in enumerate(batch.handles.slot.tolist()):
        first = max(start for start in where if start <= slot)
        assert slot - first < where[first].n_trainable, "context was drawn as a start position"
        segment = added[where[first].segment_id[2]]
        check_sample(batch, i, segment, slot - first, config)


def test_hand_computed_targets_at_a_terminal_and_a_truncation(make_segment, vector_spec):
    config = TargetConfig(unroll_steps=4, n_step=2, discount=0.5)
    for ending, discounts, valid in (
        ("terminated", [0.0, 0.0, 0.0, 0.0], [True] * 4),
        ("truncated", [0.25, 0.5, 1.0, 1.0], [True, True, False, False]),
    ):
        replay = Replay(ReplayConfig(capacity_mb=1, min_positions=1), config, vector_spec, seed=0)
        segment = make_segment(vector_spec, 2, ending=ending)
        segment.reward[:] = (1.0, 3.0)
        replay.add([segment])
        batch = replay.sample(8)
        i = batch.handles.slot.tolist().index(0)
        assert batch.reward[i].tolist() == [1.0, 3.0, 0.0, 0.0]
        assert batch.n_step_return[i].tolist() == [2.5, 3.0, 0.0, 0.0]
        assert batch.bootstrap_discount[i].tolist() == discounts
        assert batch.bootstrap_index[i].tolist() == [2, 2, 2, 3]
        assert batch.valid[i].tolist() == valid
        assert (batch.obs[i, 2:] == batch.obs[i, 2]).all()


def test_seam_positions_are_drawn_once_across_two_segments(make_segment, vector_spec):
    """An episode of 12 steps cut after 5: every position is trainable exactly once."""
    config = TargetConfig(unroll_steps=2, n_step=2)
    replay = Replay(ReplayConfig(capacity_mb=1, min_positions=1), config, vector_spec, seed=0)
    first = make_segment(vector_spec, 5 + 4, sequence=0, ending="open", n_trainable=5)
    second = make_segment(vector_spec, 7, sequence=1, ending="terminated")
    assert replay.add([first, second]).n_positions == 12
    batch = replay.sample(600)
    assert len(set(batch.handles.slot.tolist())) == 12
    assert bool(batch.valid.all()), "the overlap makes every window of the first segment complete"


@pytest.mark.parametrize(
    ("field", "value"), [("unroll_steps", 0), ("n_step", 0), ("discount", 0.0), ("discount", 1.1)]
)
def test_target_config_names_the_bad_field(field, value):
    with pytest.raises(ValueError, match=field):
        TargetConfig(**{field: value})


def test_a_batch_survives_pickling_and_owns_its_memory(make_segment, image_spec):
    replay = Replay(ReplayConfig(capacity_mb=1, min_positions=1), TargetConfig(), image_spec, 0)
    replay.add([make_segment(image_spec, 30)])
    batch = replay.sample(4)
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(batch, protocol=5, buffer_callback=buffers.append)
    assert len(data) < 4_000, "arrays must travel out of band"
    read_only = [bytes(buffer) for buffer in buffers]
    read = pickle.loads(data, buffers=read_only)
    assert torch.equal(read.obs, batch.obs) and torch.equal(read.valid, batch.valid)
    read.obs.zero_()
    np.testing.assert_array_equal(read.handles.slot, batch.handles.slot)
    assert read.legal is None and len(read) == 4

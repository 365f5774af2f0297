"""Frames that segments repeat are held once, and every segment reads back as it was."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service import GameSpec, Replay, ReplayConfig, TargetConfig
from replay_service.storage import bytes_per_step, rows_per_frame

TARGETS = TargetConfig(unroll_steps=3, n_step=2)


def make_replay(spec: GameSpec, n_frames: int) -> Replay:
    capacity_mb = (n_frames + 0.5) * bytes_per_step(spec) / 1e6
    replay = Replay(ReplayConfig(capacity_mb=capacity_mb, min_positions=1), TARGETS, spec, seed=0)
    assert replay.ring.frames.n_slots == n_frames
    return replay


def cut_episode(episode, length: int, env_id: int, frame_stack: int):
    """Segments of `length` trainable steps that overlap as acting cuts them, not numbered yet."""
    episode.obs[: frame_stack - 1] = episode.obs[frame_stack - 1]
    header = dataclasses.replace(episode.header, env_id=env_id)
    start, n_steps = 0, len(episode)
    while start < n_steps:
        stop = min(start + length + TARGETS.context_steps, n_steps)
        steps = slice(start, stop)
        yield dataclasses.replace(
            episode,
            header=header,
            obs=episode.obs[start : stop + frame_stack],
            n_trainable=stop - start if stop == n_steps else length,
            **{
                name: getattr(episode, name)[steps]
                for name in ("action", "reward", "terminated", "truncated", "policy", "root_value")
            },
            priority=episode.priority[steps],
        )
        if stop == n_steps:
            return
        start += length


def numbered(segment, sequence: int):
    return dataclasses.replace(
        segment, header=dataclasses.replace(segment.header, sequence=sequence)
    )


class Reference:
    """Which frames are held, by an id of each: segment by segment, in words."""

    def __init__(self) -> None:
        self.frames_of: dict[int, list[int]] = {}
        self.last_of_env: dict[int, int] = {}
        self.n_made = 0

    def add(self, segment, live: list[int], frame_stack: int) -> None:
        sequence, env_id = segment.header.sequence, segment.header.env_id
        self.frames_of = {s: frames for s, frames in self.frames_of.items() if s in live}
        previous = self.last_of_env.get(env_id)
        known: list[int] = []
        if previous is not None and previous in self.frames_of:
            known = self.frames_of[previous][-(TARGETS.context_steps + frame_stack) :]
        elif previous is None:
            known = [self.n_made] * (frame_stack - 1)
        n_new = segment.n_frames - len(known)
        self.frames_of[sequence] = [*known, *range(self.n_made, self.n_made + n_new)]
        self.n_made += n_new
        if segment.is_terminated or segment.is_truncated:
            self.last_of_env.pop(env_id, None)
        else:
            self.last_of_env[env_id] = sequence

    @property
    def n_held(self) -> int:
        return len({frame for frames in self.frames_of.values() for frame in frames})


@settings(max_examples=60)
@given(
    data=st.data(),
    frame_stack=st.integers(1, 3),
    n_envs=st.integers(1, 4),
    n_frames=st.integers(40, 120),
    side=st.sampled_from([2, 24]),
)
def test_interleaved_episodes_share_what_they_repeat(
    make_segment, data, frame_stack, n_envs, n_frames, side
):
    spec = GameSpec((1, side, side), "uint8", n_actions=2, frame_stack=frame_stack)
    replay, reference = make_replay(spec, n_frames), Reference()
    waiting = {env_id: iter(()) for env_id in range(n_envs)}
    added = {}
    for sequence in range(data.draw(st.integers(1, 40))):
        env_id = data.draw(st.integers(0, n_envs - 1))
        segment = next(waiting[env_id], None)
        if segment is None:
            ending = data.draw(st.sampled_from(["terminated", "truncated"]))
            episode = make_segment(
                spec, data.draw(st.integers(1, 60)), sequence=1_000 + sequence, ending=ending
            )
            length = data.draw(st.integers(2, 20))
            waiting[env_id] = cut_episode(episode, length, env_id, frame_stack)
            segment = next(waiting[env_id])
        segment = added[sequence] = numbered(segment, sequence)
        replay.add([segment])
        live = [stored.segment_id[2] for stored in replay.ring.live]
        reference.add(segment, live, frame_stack)
        assert replay.ring.frames.n_used == reference.n_held
        for stored in replay.ring.live:
            held = replay.ring.read_frames(stored)
            np.testing.assert_array_equal(held, added[stored.segment_id[2]].obs)
    batch = replay.sample(8)
    starts = {stored.start: stored.segment_id[2] for stored in replay.ring.live}
    for i, slot in enumerate(batch.handles.slot.tolist()):
        first = max(start for start in starts if start <= slot)
        obs = added[starts[first]].obs[slot - first :][:frame_stack]
        np.testing.assert_array_equal(batch.obs[i, 0].numpy(), np.concatenate(obs))


def test_a_long_episode_takes_one_frame_a_step(make_segment):
    spec = GameSpec((1, 64, 64), "uint8", n_actions=7, frame_stack=4)
    assert rows_per_frame(spec) == 1.5
    replay = make_replay(spec, 3_000)
    episode = make_segment(spec, 2_000)
    for sequence, segment in enumerate(cut_episode(episode, 40, env_id=0, frame_stack=4)):
        report = replay.add([numbered(segment, sequence)])
        assert report.n_evicted_positions == 0
    assert replay.n_positions == 2_000
    assert replay.ring.frames.n_used == 2_001, "one frame for each step, and the one after the last"
    assert report.n_bytes_held < 1.05 * 2_000 * (64 * 64 + 64)


def test_shared_frames_stay_until_both_segments_have_gone(make_segment):
    spec = GameSpec((1, 24, 24), "uint8", n_actions=2)
    replay = make_replay(spec, 60)
    first, second, *_ = cut_episode(make_segment(spec, 100), 20, env_id=0, frame_stack=1)
    replay.add([numbered(first, 0), numbered(second, 1)])
    assert replay.ring.frames.n_used == 46
    report = replay.add([make_segment(spec, 30, sequence=2, actor=1)])
    assert report.n_evicted_positions == 20
    assert replay.ring.frames.n_used == 26 + 31
    held = replay.ring.read_frames(replay.ring.live[0])
    np.testing.assert_array_equal(held, second.obs)


@pytest.mark.parametrize("other", ["environment", "content"])
def test_only_the_same_frames_of_the_same_environment_are_shared(make_segment, other):
    spec = GameSpec((1, 3, 3), "uint8", n_actions=2)
    replay = make_replay(spec, 100)
    first, second, *_ = cut_episode(make_segment(spec, 60), 20, env_id=0, frame_stack=1)
    if other == "environment":
        second = dataclasses.replace(second, header=dataclasses.replace(second.header, env_id=1))
    else:
        second = dataclasses.replace(second, obs=second.obs ^ 1)
    replay.add([numbered(first, 0), numbered(second, 1)])
    assert replay.ring.frames.n_used == first.n_frames + second.n_frames
    np.testing.assert_array_equal(replay.ring.read_frames(replay.ring.live[1]), second.obs)


def test_sharing_goes_on_after_a_snapshot(make_segment, tmp_path):
    spec = GameSpec((1, 3, 3), "uint8", n_actions=2)
    replay, restored = make_replay(spec, 100), make_replay(spec, 100)
    segments = list(cut_episode(make_segment(spec, 300), 20, env_id=0, frame_stack=1))
    for sequence, segment in enumerate(segments[:7]):
        replay.add([numbered(segment, sequence)])
    replay.save(tmp_path)
    restored.load(tmp_path)
    for sequence, segment in enumerate(segments[7:], start=7):
        assert replay.add([numbered(segment, sequence)]) == restored.add(
            [numbered(segment, sequence)]
        )
        np.testing.assert_array_equal(
            replay.ring.frames.freed_slots, restored.ring.frames.freed_slots
        )
        assert replay.ring.frames.n_used == restored.ring.frames.n_used


@pytest.mark.parametrize("name", ["frame", "freed_slots"])
@pytest.mark.parametrize("value", [-1, None, 10_000])
def test_slots_that_do_not_add_up_are_refused(make_segment, tmp_path, name, value):
    spec = GameSpec((1, 3, 3), "uint8", n_actions=2)
    replay = make_replay(spec, 100)
    replay.add([make_segment(spec, 20, sequence=i) for i in range(8)])
    replay.save(tmp_path)
    with np.load(tmp_path / "replay.npz") as saved:
        arrays = dict(saved)
    arrays[name][7] = arrays[name][6] if value is None else value
    np.savez(tmp_path / "replay.npz", **arrays)
    with pytest.raises(ValueError, match=r"is damaged: .*(frame|freed_slots)"):
        make_replay(spec, 100).load(tmp_path)

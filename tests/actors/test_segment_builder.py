"""Segments hold what was played, overlap by the targets' context, and end where episodes end."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.segment_builder import SegmentBuilder, Step, initial_priorities, stack_frames
from replay_service import GameSpec, SegmentHeader, TargetConfig
from replay_service.segment_check import check_segment


def make_builder(segment_length=5, n_step=2, unroll=3, frame_stack=1):
    spec = GameSpec((2,), "float32", 3, frame_stack)
    targets = TargetConfig(unroll_steps=unroll, n_step=n_step, discount=0.9)
    count = iter(range(10_000))

    def header(version_min, version_max, prior_version):
        return SegmentHeader(
            "run", 0, 0, next(count), 0, "", 0, "", version_min, version_max, prior_version, 1
        )

    return SegmentBuilder(spec, targets, segment_length, header), spec, targets


def frame(t):
    return np.array([t, -t], np.float32)


def play(builder, n_steps, ends=None, prior_versions=None):
    """Plays one episode whose frame t holds t; returns the segments."""
    builder.start_episode(frame(0))
    segments = []
    for t in range(n_steps):
        last = t == n_steps - 1
        step = Step(
            action=t % 3,
            reward=float(t),
            terminated=last and ends == "terminated",
            truncated=last and ends == "truncated",
            policy=np.full(3, 1 / 3, np.float32),
            root_value=0.5 * t,
            legal=None,
            prompt="",
            options=(),
            weight_version=t,
            prior_version=-1 if prior_versions is None else prior_versions[t],
        )
        segment = builder.add(step, frame(t + 1))
        if segment is not None:
            segments.append(segment)
    return segments


def test_every_step_says_which_prior_its_search_began_from():
    """The header names the newest, whatever the last step did."""
    builder, spec, _ = make_builder(segment_length=3)
    versions = [-1, -1, -1, -1, -1, -1, 2, 2, -1, 3, -1]
    segments = play(builder, len(versions), "truncated", versions)
    stamped = [
        [-1] * s.n_trainable if s.prior_version is None else s.prior_version[: s.n_trainable]
        for s in segments
    ]
    assert np.concatenate(stamped).tolist() == versions
    for segment in segments:
        check_segment(segment, spec)
        newest = -1 if segment.prior_version is None else int(segment.prior_version.max())
        assert segment.header.prior_version == newest
        assert type(segment).from_arrays(segment.to_arrays()).verify()


@settings(max_examples=60)
@given(
    st.integers(1, 60),
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from(["terminated", "truncated"]),
    st.integers(1, 3),
)
def test_every_step_of_an_episode_is_trainable_exactly_once(
    n_steps, segment_length, n_step, unroll, ends, frame_stack
):
    builder, spec, targets = make_builder(segment_length, n_step, unroll, frame_stack)
    segments = play(builder, n_steps, ends)
    trainable = [float(r) for segment in segments for r in segment.reward[: segment.n_trainable]]
    assert trainable == [float(t) for t in range(n_steps)]
    for segment in segments:
        check_segment(segment, spec)
        context = len(segment) - segment.n_trainable
        ended = bool(segment.terminated[-1] or segment.truncated[-1])
        assert context == 0 if ended else context == targets.context_steps
        first = int(segment.reward[0])
        wanted = [max(0, first - frame_stack + 1 + i) for i in range(len(segment.obs))]
        assert segment.obs[:, 0].tolist() == wanted
    assert getattr(segments[-1], ends)[-1]


def test_a_running_episode_keeps_its_steps_for_later():
    builder, _, _ = make_builder(segment_length=5)
    assert play(builder, 9) == []


def test_versions_of_all_steps_are_in_the_header():
    builder, _, _ = make_builder(segment_length=4, n_step=2, unroll=3)
    (segment,) = play(builder, 6, "terminated")
    assert (segment.header.weight_version_min, segment.header.weight_version_max) == (0, 5)


def test_priorities_by_hand():
    reward = np.array([1.0, 2.0, 3.0], np.float32)
    value = np.array([10.0, 20.0, 30.0], np.float32)
    priority = initial_priorities(reward, value, terminated=True, n_step=2, discount=0.5)
    # targets: 1 + .5*2 + .25*30 = 9.5; 2 + .5*3 = 3.5; 3
    assert priority == pytest.approx([0.5, 16.5, 27.0])
    running = initial_priorities(reward, value, terminated=False, n_step=2, discount=0.5)
    # past the end the last value stands in: 2 + .5*3 + .25*30 = 11; 3 + .5*30 = 18
    assert running == pytest.approx([0.5, 9.0, 12.0])


def test_stacking_repeats_the_first_frame():
    frames = [frame(1), frame(2)]
    assert stack_frames(frames, 3).tolist() == [1, -1, 1, -1, 2, -2]
    assert stack_frames(frames, 1).tolist() == [2, -2]

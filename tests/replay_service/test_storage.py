"""The ring against a list of segments: what lives, where, and what its generations say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service import GameSpec, Replay, ReplayConfig, TargetConfig
from replay_service.frame_store import BOOKKEEPING_BYTES
from replay_service.storage import bytes_per_step


def make_replay(spec: GameSpec, n_rows: int, text_mb: float = 1.0) -> Replay:
    capacity_mb = (n_rows + 0.5) * bytes_per_step(spec) / 1e6
    replay = Replay(
        ReplayConfig(capacity_mb=capacity_mb, text_mb=text_mb, min_positions=1),
        TargetConfig(unroll_steps=1, n_step=1),
        spec,
        seed=0,
    )
    assert replay.ring.n_rows == n_rows
    return replay


@settings(max_examples=80)
@given(
    n_rows=st.integers(14, 60),
    frame_stack=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 11), min_size=1, max_size=40),
)
def test_oldest_segments_go_and_the_rest_stays_whole(make_segment, n_rows, frame_stack, lengths):
    spec = GameSpec((2,), "float32", n_actions=3, frame_stack=frame_stack)
    replay = make_replay(spec, n_rows)
    segments, last_generation = {}, replay.ring.generation.clone()
    for sequence, n_steps in enumerate(lengths):
        segment = make_segment(spec, n_steps, sequence=sequence, n_trainable=1 + n_steps // 2)
        segments[sequence] = segment
        before = replay.n_positions
        report = replay.add([segment])
        assert report.n_positions == segment.n_trainable
        assert replay.n_positions == before + report.n_positions - report.n_evicted_positions

        live = list(replay.ring.live)
        ids = [stored.segment_id[2] for stored in live]
        assert ids == list(range(ids[0], sequence + 1)), "not the newest segments in order"
        taken = np.zeros(n_rows, dtype=int)
        drawable = np.zeros(n_rows, dtype=bool)
        for stored in live:
            rows = slice(stored.start, stored.start + stored.n_rows)
            taken[rows] += 1
            drawable[stored.start : stored.start + stored.n_trainable] = True
            held = segments[stored.segment_id[2]]
            np.testing.assert_array_equal(replay.ring.read_frames(stored), held.obs)
            steps = slice(stored.start, stored.start + len(held))
            np.testing.assert_array_equal(replay.ring.arrays["reward"][steps], held.reward)
        assert taken.max() == 1, "segments overlap"
        assert taken.sum() == replay.ring.n_rows_used
        assert replay.n_positions == drawable.sum()
        np.testing.assert_array_equal(replay.sampler.tree.leaves > 0, drawable)
        generation = replay.ring.generation.clone()
        assert (generation >= last_generation).all()
        last_generation = generation
    # Room is not wasted: what was evicted last could not have stayed.
    if ids[0] > 0:
        longest = max(lengths) + frame_stack
        assert replay.ring.n_rows_used + 3 * longest > n_rows


def test_every_reuse_of_a_slot_has_its_own_generation(make_segment, vector_spec):
    replay = make_replay(vector_spec, 12)
    seen = set()
    for sequence in range(30):
        replay.add([make_segment(vector_spec, 3 + sequence % 4, sequence=sequence)])
        newest = replay.ring.live[-1]
        for row in range(newest.start, newest.start + newest.n_rows):
            key = (row, int(replay.ring.generation[row]))
            assert key not in seen
            seen.add(key)


def test_a_segment_that_can_never_fit_is_refused_and_the_others_are_stored(
    make_segment, vector_spec
):
    replay = make_replay(vector_spec, 12)
    too_long, fits = (make_segment(vector_spec, n, sequence=n) for n in (12, 11))
    report = replay.add([too_long, fits])
    assert "obs needs 13 rows, the replay holds 12; raise" in report.reasons[0]
    assert (report.n_rejected, report.n_positions, replay.n_positions) == (1, 11, 11)
    wordy = make_replay(vector_spec, 12, text_mb=1e-6 * 20)
    report = wordy.add([make_segment(vector_spec, 10, with_text=True)])
    assert "characters of text" in report.reasons[0] and wordy.n_positions == 0


def test_text_is_held_once_and_leaves_with_its_segments(make_segment, vector_spec):
    replay = make_replay(vector_spec, 40)
    for sequence in range(50):
        replay.add([make_segment(vector_spec, 8, sequence=sequence, with_text=True)])
        n_live = len(replay.ring.live)
        assert len(replay.ring.options) == 1, "one set of options is shared by all"
        assert len(replay.ring.prompts) == 3 * n_live
        assert replay.ring.prompts.n_characters < 100 * n_live


def test_text_is_bounded_by_its_own_limit(make_segment, vector_spec):
    replay = make_replay(vector_spec, 4_000, text_mb=200e-6)
    for sequence in range(40):
        replay.add([make_segment(vector_spec, 8, sequence=sequence, with_text=True)])
        assert replay.ring.n_characters <= 200
    assert replay.ring.n_rows_used < 200 and replay.n_positions > 8


@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize("scalars", ["float16", "float32"])
@pytest.mark.parametrize("side", [4, 64])
def test_ring_memory_stays_within_the_configured_bytes(engine, scalars, side):
    image_spec = GameSpec((1, side, side), "uint8", n_actions=3)
    config = ReplayConfig(capacity_mb=3, engine=engine, scalars=scalars)
    replay = Replay(config, TargetConfig(), image_spec, seed=0)
    replay.ring.allocate("legal")
    held = sum(array.nbytes for array in replay.ring.arrays.values())
    frames = replay.ring.frames
    held += frames.frames.nbytes + BOOKKEEPING_BYTES * frames.n_slots + 4 * replay.ring.n_rows
    held += replay.sampler.priority.nbytes
    held += replay.sampler.tree.n_bytes + replay.text_sampler.tree.n_bytes
    assert 0.98 * 3e6 < held <= 3e6 + 2 * 8 * 64


@pytest.mark.parametrize(
    "spec",
    [GameSpec((1, 64, 64), "uint8", n_actions=7), GameSpec((3, 84, 84), "uint8", n_actions=18)],
)
def test_a_step_costs_its_frame_and_little_more(spec):
    """With all the rows that segments may take that share frames."""
    assert bytes_per_step(spec) <= 1.05 * (int(np.prod(spec.obs_shape)) + 64)


def test_a_column_off_the_host_is_written_and_read_like_one_on_it(vector_spec):
    """Without a GPU: a column whose memory the ring may not touch directly."""
    ring = make_replay(vector_spec, 20).ring
    del ring.arrays["policy"], ring.arrays["end"]
    policy = np.random.default_rng(0).random((5, 2)).astype(np.float32)
    policy.flags.writeable = False
    ring.write("policy", slice(3, 8), policy)
    ring.write("end", slice(3, 8), 9)
    np.testing.assert_array_equal(ring.read("policy", slice(3, 8)), policy.astype(np.float16))
    assert ring.read("end", slice(2, 9)).tolist() == [0, 9, 9, 9, 9, 9, 0]

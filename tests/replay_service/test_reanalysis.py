"""Segments handed out to be searched again, and the patches that come back, late or not."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service import (
    GameSpec,
    Handles,
    ReanalysisRequest,
    Replay,
    ReplayConfig,
    TargetConfig,
    TargetPatch,
)
from replay_service.storage import bytes_per_step

TARGETS = TargetConfig(unroll_steps=2, n_step=2)
ENGINES = ("numba", "torch")


def make_replay(spec, n_rows=200, **config) -> Replay:
    config = {"min_positions": 1} | config
    capacity_mb = (n_rows + 0.5) * bytes_per_step(spec, config.get("scalars", "float16")) / 1e6
    return Replay(ReplayConfig(capacity_mb=capacity_mb, **config), TARGETS, spec, seed=0)


def make_patch(request: ReanalysisRequest, version: int, fill: float = 0.25) -> TargetPatch:
    return TargetPatch(
        handles=request.handles,
        policy=np.tile(np.array([fill, 1.0 - fill], np.float32), (len(request), 1)),
        root_value=np.full(len(request), -fill, dtype=np.float32),
        target_version=version,
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("frame_stack", [1, 3])
def test_a_request_holds_what_a_search_of_each_step_needs(make_segment, engine, frame_stack):
    spec = GameSpec((2, 3, 3), "uint8", n_actions=4, frame_stack=frame_stack)
    replay = make_replay(spec, engine=engine)
    segments = [
        make_segment(spec, 12, sequence=i, n_trainable=8, ending="open", with_legal=True)
        for i in range(3)
    ]
    replay.add(segments)
    requests = replay.least_refreshed(2)
    assert [request.segment_id[2] for request in requests] == [0, 1]
    for request, segment in zip(requests, segments, strict=False):
        np.testing.assert_array_equal(request.obs, segment.obs)
        np.testing.assert_array_equal(request.action, segment.action)
        np.testing.assert_array_equal(request.legal, segment.legal)
        assert (len(request), request.n_trainable) == (12, 8)
        assert request.target_version == segment.header.weight_version_min
        slot = request.handles.slot
        np.testing.assert_array_equal(
            replay.ring.read("action", slice(slot[0], slot[-1] + 1)), segment.action
        )
    requests[0].obs[:] = 0
    np.testing.assert_array_equal(replay.ring.read_frames(replay.ring.live[0]), segments[0].obs)


def test_segments_take_turns_and_newcomers_wait_for_theirs(make_segment, vector_spec):
    replay = make_replay(vector_spec)
    replay.add([make_segment(vector_spec, 5, sequence=i) for i in range(3)])

    def ask(n: int) -> list[int]:
        return [request.segment_id[2] for request in replay.least_refreshed(n)]

    assert ask(2) == [0, 1]
    replay.add([make_segment(vector_spec, 5, sequence=3)])
    assert ask(2) == [2, 0]
    assert ask(9) == [1, 3, 2, 0], "each at most once a call"
    with pytest.raises(ValueError, match="n_segments must be at least 1, got 0"):
        replay.least_refreshed(0)
    assert make_replay(vector_spec).least_refreshed(4) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_patched_targets_are_sampled_and_their_share_is_told(make_segment, vector_spec, engine):
    replay = make_replay(vector_spec, engine=engine, uniform=True)
    replay.add([make_segment(vector_spec, 20, sequence=i) for i in range(2)])
    request = replay.least_refreshed(1)[0]
    assert replay.patch([make_patch(request, version=9)]) == 20
    batch = replay.sample(400)
    first = batch.handles.on_host().slot <= request.handles.slot[-1]
    policy, value = batch.policy[:, 0].numpy(), batch.root_value[:, 0].numpy()
    assert (policy[first, 0] == 0.25).all() and (value[first] == -0.25).all()
    assert not (policy[~first, 0] == 0.25).any()
    assert set(batch.weight_version.tolist()) == {0, 1}, "who played it is not rewritten"
    stats = replay.stats()
    assert stats["replay_reanalysed_share"] == pytest.approx(first.mean())
    assert stats["replay_patch_applied_total"] == 20


@pytest.mark.parametrize("engine", ENGINES)
def test_late_and_older_patches_are_counted_and_dropped(make_segment, vector_spec, engine):
    replay = make_replay(vector_spec, n_rows=50, engine=engine)
    replay.add([make_segment(vector_spec, 20, sequence=i) for i in range(5, 7)])
    kept, lost = replay.least_refreshed(2)[::-1]
    assert replay.patch([make_patch(kept, version=9)]) == 20
    assert replay.patch([make_patch(kept, version=v, fill=0.5) for v in (9, 8)]) == 0
    assert replay.stats()["replay_patch_stale_total"] == 40
    replay.add([make_segment(vector_spec, 20, sequence=7)])
    assert replay.patch([make_patch(lost, version=99)]) == 0, "its slots hold another segment"
    half = replace(kept, handles=Handles(0, kept.handles.slot[:9], kept.handles.generation[:9]))
    half = replace(half, action=half.action[:9])
    assert replay.patch([make_patch(lost, 99), make_patch(half, version=10, fill=0.5)]) == 9
    stats = replay.stats()
    assert stats["replay_patch_stale_total"] == 80
    assert stats["replay_patch_applied_total"] == 29


def test_shares_that_are_none_are_counted_and_skipped(make_segment, vector_spec):
    replay = make_replay(vector_spec)
    segment = make_segment(vector_spec, 6)
    legal = np.ones((6, 2), dtype=bool)
    legal[3, 1 - segment.action[3]] = False
    policy = np.where(legal, segment.policy, 0.0)
    policy = (policy / policy.sum(1, keepdims=True)).astype(np.float16)
    assert replay.add([replace(segment, legal=legal, policy=policy)]).n_positions == 6
    patch = make_patch(replay.least_refreshed(1)[0], version=3)  # row 3: on an illegal action
    patch.policy[0] = 0.0
    patch.policy[1] = 0.6
    assert replay.patch([patch]) == 3
    assert replay.stats()["replay_patch_invalid_total"] == 3
    with pytest.raises(ValueError, match="target_version of a patch is 2147483648"):
        replay.patch([replace(patch, target_version=2**31)])


@pytest.mark.parametrize("scalars", ["float16", "float32"])
def test_invalid_targets_are_counted_and_skipped(make_segment, vector_spec, scalars):
    replay = make_replay(vector_spec, scalars=scalars)
    replay.add([make_segment(vector_spec, 6)])
    patch = make_patch(replay.least_refreshed(1)[0], version=3)
    patch.policy[0, 1], patch.policy[1, 0] = np.nan, -0.1
    patch.root_value[2:5] = (np.inf, np.nan, 1e5)
    n_applied = 2 if scalars == "float32" else 1  # 1e5 is beyond float16
    assert replay.patch([patch]) == n_applied
    assert replay.stats()["replay_patch_invalid_total"] == 6 - n_applied
    assert replay.patch([patch]) == 0
    assert replay.stats()["replay_patch_stale_total"] == n_applied


def test_a_patch_that_does_not_belong_is_refused_before_any_is_applied(make_segment, vector_spec):
    replay = make_replay(vector_spec)
    replay.add([make_segment(vector_spec, 6)])
    good = make_patch(replay.least_refreshed(1)[0], version=3)
    held = good.handles
    for wrong, message in (
        (replace(good, handles=replace(held, shard=4)), "shard 4, this is 0"),
        (replace(good, policy=good.policy[:, :1]), r"policy of a patch has shape \(6, 1\)"),
        (replace(good, root_value=good.root_value[:3]), r"root_value of a patch has shape \(3,\)"),
        (replace(good, handles=replace(held, slot=held.slot + 199)), r"slot must lie in 0\.\.199"),
        (replace(good, handles=replace(held, slot=held.slot[:2])), "generations of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            replay.patch([good, wrong])
    assert replay.stats()["replay_patch_applied_total"] == 0
    assert replay.patch([good]) == 6


def test_masked_segments_are_not_handed_out(make_segment, vector_spec):
    replay = make_replay(vector_spec, max_weight_lag=10)
    replay.add([make_segment(vector_spec, 4, sequence=i) for i in (0, 7, 20)])
    assert [request.segment_id[2] for request in replay.least_refreshed(3)] == [20]


def test_turns_and_versions_survive_a_restart(make_segment, vector_spec, tmp_path):
    replay = make_replay(vector_spec)
    replay.add([make_segment(vector_spec, 5, sequence=i) for i in range(4)])
    requests = replay.least_refreshed(2)
    replay.patch([make_patch(requests[0], version=8)])
    replay.save(tmp_path)
    again = make_replay(vector_spec)
    again.load(tmp_path)
    assert again.patch([make_patch(requests[0], version=8)]) == 0
    assert again.patch([make_patch(requests[1], version=8)]) == 5
    assert [request.segment_id[2] for request in again.least_refreshed(4)] == [2, 3, 0, 1]
    assert again.stats()["replay_patch_applied_total"] == 10


@settings(max_examples=80)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 9), st.just(0)),
            st.tuples(st.just("ask"), st.integers(1, 3), st.just(0)),
            st.tuples(st.just("patch"), st.integers(0, 50), st.integers(0, 30)),
        ),
        max_size=40,
    )
)
def test_targets_are_those_of_the_newest_version_that_came_in_time(
    make_segment, vector_spec, steps
):
    """Against a dictionary of live segments; the ring is small, so that patches come late too."""
    replay = make_replay(vector_spec, n_rows=40)
    requests: list[ReanalysisRequest] = []
    expected: dict[int, tuple[int, np.ndarray]] = {}
    turn: list[int] = []
    for sequence, (verb, number, version) in enumerate(steps):
        if verb == "add":
            segment = make_segment(vector_spec, number, sequence=sequence)
            replay.add([segment])
            expected[sequence] = (sequence, segment.policy)
            live = {stored.segment_id[2] for stored in replay.ring.live}
            turn = [item for item in [*turn, sequence] if item in live]
        elif verb == "ask":
            asked = replay.least_refreshed(number)
            assert [request.segment_id[2] for request in asked] == turn[:number]
            turn = turn[number:] + turn[:number]
            requests += asked
        elif requests:
            request = requests[number % len(requests)]
            item, fill = request.segment_id[2], (version + 1) / 32
            n_applied = replay.patch([make_patch(request, version, fill)])
            in_time = item in turn and version > expected[item][0]
            assert n_applied == (len(request) if in_time else 0)
            if in_time:
                expected[item] = (
                    version,
                    make_patch(request, version, fill).policy.astype(np.float16),
                )
    for stored in replay.ring.live:
        steps_of = slice(stored.start, stored.start + stored.n_rows - 1)
        version, policy = expected[stored.segment_id[2]]
        np.testing.assert_array_equal(replay.ring.read("policy", steps_of), policy)
        assert (replay.ring.read("target_version", steps_of) == version).all()

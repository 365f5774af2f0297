"""The verbs of one shard: duplicates, late priorities, text, statistics, saving and loading."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from replay_service import (
    Handles,
    LocalBatchSource,
    Replay,
    ReplayConfig,
    TargetConfig,
    array_file,
    check_capacity,
)
from replay_service.storage import bytes_per_step

TARGETS = TargetConfig(unroll_steps=3, n_step=2)


@pytest.fixture
def make_replay(vector_spec):
    def make(n_rows: int = 100, seed: int = 0, spec=vector_spec, **settings) -> Replay:
        row_bytes = bytes_per_step(spec, settings.get("scalars", "float16"))
        capacity_mb = (n_rows + 0.5) * row_bytes / 1e6
        settings = {"min_positions": 1, "beta_steps": 10} | settings
        return Replay(ReplayConfig(capacity_mb=capacity_mb, **settings), TARGETS, spec, seed)

    return make


def test_duplicates_are_recognised_while_live_and_after_eviction(
    make_replay, make_segment, vector_spec
):
    replay = make_replay()
    segments = [make_segment(vector_spec, 20, sequence=i) for i in range(8)]
    assert replay.add(segments[:2]).n_duplicates == 0
    again = replay.add(segments[:2])
    assert (again.n_positions, again.n_duplicates) == (0, 2)
    replay.add(segments[2:])
    assert replay.add(segments[:1]).n_duplicates == 1, "evicted, hence known by its sequence"
    restarted = make_segment(vector_spec, 20, sequence=0, incarnation=1)
    other = make_segment(vector_spec, 20, sequence=0, actor=1)
    assert replay.add([restarted, other]).n_duplicates == 0
    assert replay.stats()["replay_duplicate_total"] == 3


def test_malformed_segments_are_rejected_with_a_reason(make_replay, make_segment, vector_spec):
    replay = make_replay()
    good = make_segment(vector_spec, 20, sequence=1).with_checksum()
    wrong_reward = dataclasses.replace(good, reward=good.reward * np.float32("nan"))
    tampered = dataclasses.replace(good, reward=good.reward + 1)
    report = replay.add([wrong_reward, tampered, good])
    assert (report.n_rejected, report.n_positions) == (2, 20)
    assert "reward holds NaN" in report.reasons[0] and "checksum" in report.reasons[1]
    assert replay.stats()["replay_rejected_total"] == 2


def test_late_priorities_are_dropped_and_counted(make_replay, make_segment, vector_spec):
    replay = make_replay(n_rows=50)
    replay.add([make_segment(vector_spec, 20, sequence=0)])
    batch = replay.sample(16)
    replay.add([make_segment(vector_spec, 20, sequence=i) for i in range(1, 3)])
    before = replay.sampler.tree.leaves.copy()
    assert replay.update_priorities(batch.handles, np.full(16, 9.0)) == 0
    np.testing.assert_array_equal(replay.sampler.tree.leaves, before)
    assert replay.stats()["replay_stale_total"] == 16

    batch = replay.sample(16)
    priorities = np.full(16, 3.0)
    priorities[:3] = (np.nan, -1.0, 1e300)
    assert replay.update_priorities(batch.handles, priorities) == 13
    assert replay.stats()["replay_invalid_priority_total"] == 3
    assert replay.sampler.priority[batch.handles.slot[-1]] == 3.0


def test_update_refuses_what_does_not_belong(make_replay, make_segment, vector_spec):
    replay = make_replay()
    replay.add([make_segment(vector_spec, 20)])
    handles = replay.sample(4).handles
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        replay.update_priorities(handles, np.ones(3))
    context = Handles(0, np.array([20]), replay.ring.generation[[20]].numpy())
    assert replay.update_priorities(context, np.ones(1)) == 0, "no sample starts there"
    assert replay.stats()["replay_stale_total"] == 1
    with pytest.raises(ValueError, match="shard 2, this is 0"):
        replay.update_priorities(dataclasses.replace(handles, shard=2), np.ones(4))
    with pytest.raises(ValueError, match=r"slot must lie in 0\.\.99"):
        replay.update_priorities(Handles(0, handles.slot + 100, handles.generation), np.ones(4))


def test_sampling_needs_a_position(make_replay):
    with pytest.raises(ValueError, match="no trainable position"):
        make_replay().sample(4)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        make_replay().sample(0)


def test_beta_rises_with_sample_calls_and_weights_stay_below_one(
    make_replay, make_segment, vector_spec
):
    replay = make_replay()
    replay.add([make_segment(vector_spec, 20)])
    for wanted in (0.4, 0.46, 0.52):
        assert replay.stats()["replay_beta"] == pytest.approx(wanted)
        assert replay.sample(8).importance.max() == 1.0
    for _ in range(20):
        replay.sample(8)
    assert replay.stats()["replay_beta"] == 1.0


def test_text_is_drawn_uniformly_from_trainable_steps_with_a_prompt(
    make_replay, make_segment, vector_spec
):
    replay = make_replay()
    assert replay.sample_text(4) is None
    replay.add([make_segment(vector_spec, 20)])
    assert replay.sample_text(4) is None and replay.text_sampler.everything() is None
    segment = make_segment(
        vector_spec, 20, sequence=1, with_text=True, ending="open", n_trainable=10
    )
    replay.add([segment])
    batch = replay.sample_text(500)
    assert batch is not None
    steps = [i for i in range(10) if segment.prompt[i]]
    assert set(batch.prompt) == {segment.prompt[i] for i in steps}
    assert set(batch.options) == {segment.options[0]}
    rows = {tuple(row) for row in batch.policy.tolist()}
    assert rows == {tuple(row) for row in segment.policy[steps].astype(np.float32).tolist()}
    everything = replay.text_sampler.everything()
    assert everything is not None
    assert everything.prompt == tuple(segment.prompt[i] for i in steps)
    assert np.array_equal(everything.policy, segment.policy[steps].astype(np.float32))
    assert everything.action.tolist() == segment.action[steps].tolist()


def test_legal_masks_may_arrive_late(make_replay, make_segment, vector_spec):
    replay = make_replay()
    replay.add([make_segment(vector_spec, 20)])
    assert replay.sample(4).legal is None
    replay.add([make_segment(vector_spec, 20, sequence=1, with_legal=True)])
    batch = replay.sample(64)
    is_first = torch.from_numpy(batch.handles.slot < 20)
    assert bool(batch.legal[is_first].all()) and not bool(batch.legal[~is_first].all())


def test_unique_ratio_counts_distinct_positions(make_replay, make_segment, vector_spec):
    replay = make_replay(uniform=True)
    replay.add([make_segment(vector_spec, 4)])
    replay.sample(16)
    assert replay.stats()["replay_last_unique_ratio"] == 4 / 16


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("capacity_mb", 0.0),
        ("text_mb", float("inf")),
        ("min_positions", 0),
        ("alpha", 1.5),
        ("beta_start", -0.1),
        ("beta_steps", 0),
        ("priority_floor", 0.0),
    ],
)
def test_config_names_the_bad_field(field, value):
    with pytest.raises(ValueError, match=field):
        ReplayConfig(**{field: value})


def test_a_capacity_that_cannot_serve_is_refused(image_spec):
    config = ReplayConfig(capacity_mb=0.1, min_positions=10)
    check_capacity(config, TARGETS, image_spec, batch_size=64)
    with pytest.raises(ValueError, match=r"batch_size=5000 need .* raise replay.capacity_mb to"):
        check_capacity(config, TARGETS, image_spec, batch_size=5_000)
    greedy = dataclasses.replace(config, min_positions=100_000)
    with pytest.raises(ValueError, match="min_positions=100000"):
        check_capacity(greedy, TARGETS, image_spec, batch_size=64)
    with pytest.raises(ValueError, match="need"):
        check_capacity(config, TARGETS, image_spec, batch_size=300, segment_steps=2)


def test_the_named_remedy_of_check_capacity_works(image_spec):
    config = ReplayConfig(capacity_mb=0.01, min_positions=5_000)
    with pytest.raises(ValueError) as error:
        check_capacity(config, TARGETS, image_spec, batch_size=64, segment_steps=50)
    remedy = float(str(error.value).split("capacity_mb to ")[1].split(" ")[0])
    larger = dataclasses.replace(config, capacity_mb=remedy * 1.005)  # printed to three digits
    check_capacity(larger, TARGETS, image_spec, batch_size=64, segment_steps=50)


def assert_same_future(left: Replay, right: Replay, make_segment) -> None:
    """Both replays answer the same calls alike, bit for bit."""
    for round_index in range(12):
        ours, theirs = left.sample(8), right.sample(8)
        np.testing.assert_array_equal(ours.handles.slot, theirs.handles.slot)
        np.testing.assert_array_equal(ours.handles.generation, theirs.handles.generation)
        for name, tensor in ours._tensors().items():
            assert torch.equal(tensor, getattr(theirs, name)), name
        assert left.sample_text(5).prompt == right.sample_text(5).prompt
        priorities = np.random.default_rng(round_index).random(8)
        left.update_priorities(ours.handles, priorities)
        right.update_priorities(theirs.handles, priorities)
        segment = make_segment(left.spec, 9, sequence=100 + round_index, with_text=True)
        segment.priority[:2] = np.nan  # replaced by the highest seen, which must be restored too
        assert left.add([segment]) == right.add([segment])
    # Times, and lags of what this object sampled since it was made.
    measured = ("replay_lag_", *(f"replay_{n}_ms" for n in ("sample", "draw", "gather", "targets")))
    ours, theirs = left.stats(), right.stats()
    assert {k: v for k, v in ours.items() if not k.startswith(measured)} == {
        k: v for k, v in theirs.items() if not k.startswith(measured)
    }


@pytest.mark.parametrize("n_segments", [2, 25])
def test_load_continues_exactly(make_replay, make_segment, vector_spec, tmp_path, n_segments):
    replay = make_replay()
    for i in range(n_segments):
        replay.add(
            [make_segment(vector_spec, 8 + i % 5, sequence=i, with_text=i % 3 > 0, with_legal=True)]
        )
        replay.update_priorities(replay.sample(4).handles, np.full(4, i + 1.0))
    replay.save(tmp_path / "replay")
    names = sorted(path.name for path in tmp_path.rglob("*.*"))
    assert names[1:] == ["replay.json", "replay.npz"] and names[0].startswith("frames-00000-")
    with np.load(tmp_path / "replay" / "replay.npz", allow_pickle=False) as arrays:
        assert {"action", "priority", "generation", "text"} <= set(arrays)
    restored = make_replay(seed=99)
    restored.load(tmp_path / "replay")
    assert restored.add([make_segment(vector_spec, 8, sequence=1)]).n_duplicates == 1
    replay.add([make_segment(vector_spec, 8, sequence=1)])
    assert_same_future(replay, restored, make_segment)


def test_a_snapshot_of_other_scalars_or_of_the_future_is_refused(
    make_replay, make_segment, vector_spec, tmp_path
):
    make_replay().save(tmp_path)
    with pytest.raises(ValueError, match="saved with scalars=float16, this replay has float32"):
        make_replay(scalars="float32").load(tmp_path)
    state = json.loads((tmp_path / "replay.json").read_text())
    (tmp_path / "replay.json").write_text(json.dumps(state | {"format_version": 6}))
    with pytest.raises(ValueError, match=r"format_version=6, this program reads \(1, 2, 3, 4, 5\)"):
        make_replay().load(tmp_path)


def test_large_snapshots_are_moved_in_pieces(
    make_replay, make_segment, vector_spec, tmp_path, monkeypatch
):
    monkeypatch.setattr(array_file, "_CHUNK_BYTES", 50)
    replay = make_replay()
    replay.add([make_segment(vector_spec, 9, sequence=i, with_text=True) for i in range(5)])
    replay.save(tmp_path)
    (path,) = tmp_path.glob("frames-*.npy")
    frames = np.load(path)
    np.testing.assert_array_equal(frames, replay.ring.frames.frames[: len(frames)].numpy())
    restored = make_replay(seed=1)
    restored.load(tmp_path)
    assert_same_future(replay, restored, make_segment)


@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize("scalars", ["float16", "float32"])
def test_scalars_are_stored_as_precisely_as_asked(
    make_replay, make_segment, vector_spec, engine, scalars
):
    replay = make_replay(engine=engine, scalars=scalars)
    segment = make_segment(vector_spec, 20)
    policy = np.random.default_rng(0).dirichlet(np.ones(2), 20).astype(np.float32)
    value = (np.arange(20) * 10_000.3).astype(np.float32)
    precise = dataclasses.replace(segment, policy=policy, root_value=value)
    report = replay.add([precise])
    if scalars == "float16":
        assert "root_value reaches 190006, beyond float16; set replay.scalars" in report.reasons[0]
        precise = dataclasses.replace(precise, root_value=value / 100)
        replay.add([precise])
    batch = replay.sample(16)
    start = batch.handles.on_host().slot
    stored = precise.policy.astype(scalars).astype(np.float32)
    np.testing.assert_array_equal(batch.policy[:, 0].numpy(), stored[start])
    stored = precise.root_value.astype(scalars).astype(np.float32)
    np.testing.assert_array_equal(batch.root_value[:, 0].numpy(), stored[start])


def test_an_empty_replay_can_be_saved_and_loaded(make_replay, tmp_path):
    make_replay().save(tmp_path)
    restored = make_replay()
    restored.load(tmp_path)
    assert restored.n_positions == 0


def test_load_names_the_file_and_what_is_wrong(make_replay, make_segment, vector_spec, tmp_path):
    replay = make_replay()
    replay.add([make_segment(vector_spec, 20)])
    replay.save(tmp_path)
    with pytest.raises(ValueError, match=r"replay\.json was saved with n_rows=100, .* has 120"):
        make_replay(n_rows=120).load(tmp_path)
    with pytest.raises(ValueError, match=r"replay\.json was saved with alpha=0\.6"):
        make_replay(uniform=True).load(tmp_path)
    with pytest.raises(ValueError, match=r"nowhere/replay\.json is not a readable"):
        make_replay().load(tmp_path / "nowhere")

    archive = tmp_path / "replay.npz"
    content = archive.read_bytes()
    for damaged in (content[: len(content) // 2], b"", flip_byte(content, 400)):
        archive.write_bytes(damaged)
        fresh = make_replay()
        with pytest.raises(ValueError, match=r"replay\.npz is not a readable replay snapshot"):
            fresh.load(tmp_path)
        fresh.add([make_segment(vector_spec, 5)])
        assert fresh.sample(50).handles.slot.max() < 5, "a failed load leaves nothing behind"
    archive.write_bytes(content)

    state = json.loads((tmp_path / "replay.json").read_text())
    state["high_row"] += 1
    (tmp_path / "replay.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"replay\.npz .* frame is int32 \(21,\), expected"):
        make_replay().load(tmp_path)
    del state["live"]
    (tmp_path / "replay.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"replay\.json lacks live"):
        make_replay().load(tmp_path)


def flip_byte(content: bytes, position: int) -> bytes:
    damaged = bytearray(content)
    damaged[position] ^= 255
    return bytes(damaged)


def test_a_seed_fixes_the_samples(make_replay, make_segment, vector_spec):
    draws = []
    for seed in (1, 1, 2):
        replay = make_replay(seed=seed)
        replay.add([make_segment(vector_spec, 40)])
        source = LocalBatchSource(replay, 8)
        batch = source.next()
        source.update_priorities(batch.handles, np.ones(8))
        draws.append((source.next().handles.slot.tolist(), batch.action.tolist()))
    assert draws[0] == draws[1] != draws[2]

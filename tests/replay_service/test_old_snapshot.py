"""Snapshots of older formats: the segments that they held are there again."""

import json

import numpy as np
import pytest

from replay_service import GameSpec, Replay, ReplayConfig, TargetConfig
from replay_service.storage import bytes_per_step

SPEC = GameSpec((1, 4, 4), "uint8", n_actions=3, frame_stack=2)
OLD_BLOCK_ROWS = 7


def make_replay(n_steps: int = 100, **settings) -> Replay:
    capacity_mb = (n_steps + 0.5) * bytes_per_step(SPEC) / 1e6
    config = ReplayConfig(capacity_mb=capacity_mb, min_positions=1, **settings)
    return Replay(config, TargetConfig(unroll_steps=3, n_step=2), SPEC, seed=0)


def make_older(folder, version: int) -> None:
    """Rewrite a snapshot as an older format had it: every row with a frame of its own."""
    with np.load(folder / "replay.npz") as saved:
        arrays = dict(saved)
    files = sorted(folder.glob("frames-*.npy"))
    frames = np.concatenate([np.load(path) for path in files])[arrays.pop("frame")]
    for path in files:
        path.unlink()
    del arrays["freed_slots"]
    state = json.loads((folder / "replay.json").read_text())
    state["format_version"] = version
    for name in ("n_frames", "high_slot", "frame_writes"):
        del state[name]
    for entry in state["live"]:
        del entry["env_id"], entry["tail_digest"]
    if version == 4:
        state["frame_writes"] = [5] * 20
        for block, start in enumerate(range(0, len(frames), OLD_BLOCK_ROWS)):
            name = f"frames-{block:05d}-{5:09d}.npy"
            np.save(folder / name, frames[start : start + OLD_BLOCK_ROWS])
    else:
        arrays["obs"] = frames
    if version < 3:
        del state["counters"]["n_batches"]
    if version == 1:
        del arrays["target_version"], state["scalars"], state["refresh_order"]
        arrays["weight_version"] = arrays["weight_version"].astype(np.int64)
        for name in ("n_patched", "n_patch_stale", "n_patch_invalid"):
            del state["counters"][name]
    np.savez(folder / "replay.npz", **arrays)
    (folder / "replay.json").write_text(json.dumps(state))


def held(replay: Replay) -> dict[tuple[int, int, int], dict[str, object]]:
    """What is stored of each live segment, wherever it lies."""
    content = {}
    for stored in replay.ring.live:
        steps = slice(stored.start, stored.start + stored.n_rows - SPEC.frame_stack)
        names = ("action", "reward", "policy", "root_value", "legal", "ending", "weight_version")
        columns = {n: replay.ring.read(n, steps).tolist() for n in (*names, "target_version")}
        (texts,) = [r for r in replay.least_refreshed(100) if r.segment_id == stored.segment_id]
        content[stored.segment_id] = columns | {
            "frames": replay.ring.read_frames(stored).tolist(),
            "priority": replay.sampler.priority[stored.trainable].tolist(),
            "texts": (texts.prompt, texts.options),
        }
    return content


@pytest.fixture
def saved(make_segment, tmp_path) -> Replay:
    replay = make_replay()
    for sequence in range(15):
        segment = make_segment(
            SPEC, 8, sequence=sequence, with_text=sequence % 2 > 0, with_legal=True, n_trainable=6
        )
        replay.add([segment])
        replay.update_priorities(replay.sample(4).handles, np.full(4, sequence + 1.0))
    replay.save(tmp_path)
    return replay


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_segments_of_an_older_format_are_taken_over(saved, make_segment, tmp_path, version):
    make_older(tmp_path, version)
    restored = make_replay()
    restored.load(tmp_path)
    assert held(restored) == held(saved)
    assert restored.n_positions == saved.n_positions
    assert restored.counters.n_pushed == saved.counters.n_pushed
    assert restored.sampler.highest == saved.sampler.highest
    for sequence in (0, 14):
        assert restored.add([make_segment(SPEC, 8, sequence=sequence)]).n_duplicates == 1
    again = make_replay()
    restored.save(tmp_path / "again")
    again.load(tmp_path / "again")
    assert held(again) == held(restored)


def test_the_oldest_go_if_not_all_fit(saved, tmp_path):
    make_older(tmp_path, 4)
    smaller = make_replay(90)
    smaller.load(tmp_path)
    ids = [stored.segment_id for stored in saved.ring.live]
    assert [stored.segment_id for stored in smaller.ring.live] == ids[1:]
    assert smaller.n_positions == sum(stored.n_trainable for stored in smaller.ring.live)


def test_what_was_too_old_stays_masked(make_segment, tmp_path):
    replay = make_replay(max_weight_lag=3)
    replay.add([make_segment(SPEC, 8, sequence=i) for i in range(6)])
    replay.note_newest(6)
    replay.save(tmp_path)
    make_older(tmp_path, 4)
    restored = make_replay(max_weight_lag=3)
    restored.load(tmp_path)
    assert 0 < restored.n_positions == replay.n_positions < 48
    assert restored.stats()["replay_too_old_masked_total"] == 8 * 3
    drawn = set(restored.sample(100).weight_version.tolist())
    assert drawn == {3, 4, 5}


@pytest.mark.parametrize("damage", ["a block is missing", "an array is missing", "wrong frames"])
def test_a_damaged_one_is_refused(saved, tmp_path, damage):
    make_older(tmp_path, 4)
    block = sorted(tmp_path.glob("frames-*.npy"))[1]
    if damage == "a block is missing":
        block.unlink()
    elif damage == "wrong frames":
        np.save(block, np.load(block).astype(np.int64))
    else:
        with np.load(tmp_path / "replay.npz") as arrays:
            kept = {name: arrays[name] for name in arrays.files if name != "reward"}
        np.savez(tmp_path / "replay.npz", **kept)
    fresh = make_replay()
    with pytest.raises(ValueError, match="is not a readable replay snapshot"):
        fresh.load(tmp_path)
    assert fresh.n_positions == 0

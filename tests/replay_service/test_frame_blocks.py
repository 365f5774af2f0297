"""Snapshots share the blocks of frames that did not change, and only those."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay_service import Replay, ReplayConfig, TargetConfig, frame_blocks
from replay_service.storage import bytes_per_step

TARGETS = TargetConfig(unroll_steps=3, n_step=2)
BLOCK_ROWS = 8


@pytest.fixture
def make_replay(image_spec, monkeypatch):
    """Replays of 100 rows of 16 bytes, in 13 blocks."""
    monkeypatch.setattr(frame_blocks, "BLOCK_BYTES", BLOCK_ROWS * 16)

    def make() -> Replay:
        capacity_mb = 100.5 * bytes_per_step(image_spec) / 1e6
        return Replay(
            ReplayConfig(capacity_mb=capacity_mb, min_positions=1), TARGETS, image_spec, 0
        )

    return make


def frame_files(folder) -> dict[str, int]:
    """Inode by name."""
    return {path.name: path.stat().st_ino for path in folder.glob("frames-*.npy")}


def assert_holds(folder, make_replay, replay) -> None:
    restored = make_replay()
    restored.load(folder)
    high_row = replay.ring.high_row
    assert restored.ring.high_row == high_row
    for name, array in replay.ring.arrays.items():
        np.testing.assert_array_equal(restored.ring.arrays[name][:high_row], array[:high_row])
    for stored in replay.ring.live:
        np.testing.assert_array_equal(
            restored.ring.read_frames(stored), replay.ring.read_frames(stored)
        )


def test_only_blocks_with_new_rows_are_written(make_replay, make_segment, image_spec, tmp_path):
    replay = make_replay()
    replay.add([make_segment(image_spec, 23)])  # 24 rows: blocks 0, 1, 2
    replay.save(tmp_path / "a")
    replay.add([make_segment(image_spec, 11, sequence=1)])  # rows 24 .. 35: blocks 3, 4
    replay.save(tmp_path / "b", tmp_path / "a")
    a, b = frame_files(tmp_path / "a"), frame_files(tmp_path / "b")
    assert len(a) == 3 and len(b) == 5
    assert {name: b[name] for name in a} == a
    for name in ("a", "b"):
        assert (tmp_path / name / "replay.json").is_file()
    assert_holds(tmp_path / "b", make_replay, replay)


def test_a_folder_is_whole_without_the_one_before(make_replay, make_segment, image_spec, tmp_path):
    replay = make_replay()
    replay.add([make_segment(image_spec, 23)])
    replay.save(tmp_path / "a")
    replay.save(tmp_path / "b", tmp_path / "a")
    for path in (tmp_path / "a").iterdir():
        path.unlink()
    assert_holds(tmp_path / "b", make_replay, replay)


def test_a_replay_does_not_take_frames_of_another(make_replay, make_segment, image_spec, tmp_path):
    """Names count writes, so a replay that began anew would find its names in older folders."""
    first, second = make_replay(), make_replay()
    first.add([make_segment(image_spec, 23)])
    first.save(tmp_path / "a")
    second.add([make_segment(image_spec, 23, sequence=9)])
    second.save(tmp_path / "b", tmp_path / "a")
    assert frame_files(tmp_path / "a").keys() == frame_files(tmp_path / "b").keys()
    assert_holds(tmp_path / "b", make_replay, second)


def test_without_hard_links_frames_are_copied(
    make_replay, make_segment, image_spec, tmp_path, monkeypatch
):
    def refuse(source, target):
        raise OSError("no hard links here")

    monkeypatch.setattr(frame_blocks.os, "link", refuse)
    replay = make_replay()
    replay.add([make_segment(image_spec, 23)])
    replay.save(tmp_path / "a")
    replay.save(tmp_path / "b", tmp_path / "a")
    a, b = frame_files(tmp_path / "a"), frame_files(tmp_path / "b")
    assert a.keys() == b.keys() and not set(a.values()) & set(b.values())
    assert_holds(tmp_path / "b", make_replay, replay)


@pytest.mark.parametrize("damage", ["short", "missing", "other shape"])
def test_frames_that_do_not_fit_are_named(make_replay, make_segment, image_spec, tmp_path, damage):
    replay = make_replay()
    replay.add([make_segment(image_spec, 23)])
    replay.save(tmp_path)
    path = sorted(tmp_path.glob("frames-*.npy"))[1]
    if damage == "short":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "missing":
        path.unlink()
    else:
        np.save(path, np.zeros((BLOCK_ROWS, 2), np.uint8))
    fresh = make_replay()
    with pytest.raises(ValueError, match=f"holds no readable frames: .*{path.name}"):
        fresh.load(tmp_path)
    fresh.add([make_segment(image_spec, 5)])
    assert fresh.sample(50).handles.slot.max() < 5


@settings(max_examples=40)
@given(data=st.data())
def test_any_chain_of_snapshots_restores(data, tmp_path_factory, make_segment, image_spec):
    """Adds, saves (some of which fail afterwards), and restarts from any snapshot so far."""
    folder = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame_blocks, "BLOCK_BYTES", BLOCK_ROWS * 16)
        capacity_mb = 100.5 * bytes_per_step(image_spec) / 1e6
        config = ReplayConfig(capacity_mb=capacity_mb, min_positions=1)

        def make() -> Replay:
            return Replay(config, TARGETS, image_spec, 0)

        replay, saved, sequence = make(), [], 0
        for step in range(data.draw(st.integers(2, 8))):
            for _ in range(data.draw(st.integers(0, 3))):
                length = data.draw(st.integers(1, 40))
                replay.add([make_segment(image_spec, length, sequence=sequence)])
                sequence += 1
            saved.append(folder / f"{step}")
            replay.save(saved[-1], data.draw(st.sampled_from([None, *saved[:-1]])))
            assert_holds(saved[-1], make, replay)
            if data.draw(st.booleans()):
                replay = make()
                replay.load(data.draw(st.sampled_from(saved)))

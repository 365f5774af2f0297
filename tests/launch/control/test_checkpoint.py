"""A checkpoint is whole or it is not there; damage is found and the one before it is used."""

import json

import pytest

from launch.control.checkpoint import COUNTERS, LATEST, CheckpointError, CheckpointStore, verify


def write_one(store, env_steps, content=b"weights"):
    folder = store.begin(updates=env_steps * 2, env_steps=env_steps)
    (folder / "learner").mkdir()
    (folder / "learner" / "model.bin").write_bytes(content)
    return store.commit(folder, {"progress": {"env_steps": env_steps}}, reason="test")


def test_the_newest_checkpoint_is_found_with_its_counters(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    assert store.latest() is None
    write_one(store, 100)
    second = write_one(store, 200)
    assert store.latest() == second
    assert verify(second)["progress"] == {"env_steps": 200}
    assert (tmp_path / LATEST).read_text().strip() == second.name


def test_only_the_newest_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for env_steps in (100, 200, 300):
        write_one(store, env_steps)
    names = sorted(p.name for p in tmp_path.iterdir() if p.is_dir())
    assert [n.split("-")[1] for n in names] == ["0000000200", "0000000300"]


def test_an_unfinished_checkpoint_is_never_used(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    first = write_one(store, 100)
    folder = store.begin(updates=400, env_steps=200)
    (folder / "half.bin").write_bytes(b"half")
    assert store.latest() == first


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path, damage):
    store = CheckpointStore(tmp_path, keep=3)
    first = write_one(store, 100)
    second = write_one(store, 200)
    victim = second / "learner" / "model.bin"
    if damage == "flip":
        victim.write_bytes(b"weightz")
    elif damage == "truncate":
        victim.write_bytes(b"wei")
    elif damage == "remove":
        victim.unlink()
    else:
        (second / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=str(second)):
        verify(second)
    assert store.latest() == first


def test_counters_are_plain_json(tmp_path):
    path = write_one(CheckpointStore(tmp_path, keep=1), 7)
    content = json.loads((path / COUNTERS).read_text())
    assert content["reason"] == "test"
    assert content["progress"]["env_steps"] == 7

"""Disks that fail: whatever happens while a checkpoint is written or read, an older one is used.

Kills are real: a forked child writes a checkpoint and leaves at the n-th thing that Python's audit
hooks report it to do with files (open, rename, remove, mkdir, ...), for every n there is.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.control.checkpoint import MANIFEST, CheckpointError, CheckpointStore, verify

KILLED, DONE = 9, 0
FILE_EVENTS = ("open", "os.", "shutil.")


def write_one(store: CheckpointStore, env_steps: int, *, is_best: bool = False) -> Path:
    folder = store.begin(updates=env_steps, env_steps=env_steps)
    for part in ("learner", "replay"):
        (folder / part).mkdir()
        (folder / part / "data.bin").write_bytes(f"{part} {env_steps}".encode() * 100)
    counters = {"progress": {"env_steps": env_steps}}
    return store.commit(folder, counters, reason="test", is_best=is_best)


def in_child(work) -> int:
    """Exit code of `work` in a forked process."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = work() or DONE
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(n: int, work) -> int:
    """KILLED if `work` was ended at its n-th file operation, DONE if it has fewer."""

    def run():
        seen = count()

        def hook(event, arguments):
            if event.startswith(FILE_EVENTS) and next(seen) == n:
                os._exit(KILLED)

        sys.addaudithook(hook)
        work()

    return in_child(run)


@pytest.mark.parametrize("env_steps", [200, 100], ids=["next", "same counters again"])
def test_a_kill_at_any_write_leaves_a_loadable_checkpoint(tmp_path, env_steps):
    for n in count():
        folder = tmp_path / f"{n}"
        store = CheckpointStore(folder, keep=1)
        first = write_one(store, 100)
        outcome = killed_at(n, partial(write_one, store, env_steps))
        found = store.latest()
        assert found is not None
        assert verify(found)["progress"]["env_steps"] in (100, env_steps)
        if outcome == DONE:
            assert found != first
        after = write_one(store, 300)  # and the run that goes on writes the next one
        assert store.latest() == after
        assert [p.name for p in folder.iterdir() if p.is_dir()] == [after.name]
        if outcome == DONE:
            break
        assert outcome == KILLED
    assert n > 15  # else nothing was counted


def test_a_full_disk_leaves_the_checkpoints_before(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    first = write_one(store, 100)

    def write_with_little_room():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
        try:
            write_one(store, 200)
        except OSError:
            return 3

    assert in_child(write_with_little_room) == 3
    assert store.latest() == first
    second = write_one(store, 200)
    assert store.latest() == second
    assert not list(tmp_path.glob(".tmp*"))


def test_files_shared_with_the_checkpoint_before_are_listed_and_outlive_it(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    first = write_one(store, 100)
    folder = store.begin(updates=200, env_steps=200)
    (folder / "replay").mkdir()
    os.link(first / "replay" / "data.bin", folder / "replay" / "data.bin")
    (folder / "replay" / "new.bin").write_bytes(b"new")
    second = store.commit(folder, {"progress": {"env_steps": 200}}, reason="test")
    assert not first.exists()
    assert verify(second)["progress"]["env_steps"] == 200
    (second / "replay" / "data.bin").write_bytes(b"old")
    with pytest.raises(CheckpointError, match=r"data\.bin differs"):
        verify(second)


def test_what_was_written_when_the_disk_failed_is_cleared_away(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    half = store.begin(updates=1, env_steps=1)
    (half / "half.bin").write_bytes(b"half")
    write_one(store, 100)
    assert not half.exists()


def test_the_best_stays_beside_the_newest(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    best = write_one(store, 100, is_best=True)
    for env_steps in (200, 300, 400):
        newest = write_one(store, env_steps)
    kept = {p.name for p in tmp_path.iterdir() if p.is_dir()}
    assert best.name in kept and newest.name in kept and len(kept) == 3
    better = write_one(store, 500, is_best=True)
    assert {best.name, better.name} & {p.name for p in tmp_path.iterdir()} == {better.name}


def test_a_broken_checkpoint_is_skipped_with_a_warning(tmp_path, caplog):
    store = CheckpointStore(tmp_path, keep=3)
    first, second = write_one(store, 100), write_one(store, 200)
    (second / "replay" / "data.bin").write_bytes(b"")
    assert store.latest() == first
    assert f"skipping checkpoint {second.name}" in caplog.text and "data.bin" in caplog.text


@settings(max_examples=150)
@given(data=st.data())
def test_any_flipped_or_missing_bytes_are_noticed(tmp_path_factory, data):
    store = CheckpointStore(tmp_path_factory.mktemp("flip"), keep=3)
    first, second = write_one(store, 100), write_one(store, 200)
    victim = data.draw(st.sampled_from(sorted(p for p in second.rglob("*") if p.is_file())))
    content = bytearray(victim.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[where] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[where:]
    victim.write_bytes(content)
    try:
        counters = verify(second)
    except CheckpointError:
        assert store.latest() == first
    else:  # a flip in the manifest's white space or in a name of no meaning
        assert victim.name == MANIFEST and counters["progress"]["env_steps"] == 200


NODES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda node: st.lists(node) | st.dictionaries(st.text(), node),
)


@settings(max_examples=150)
@given(
    content=st.binary()
    | st.builds(lambda node: json.dumps(node).encode(), NODES)
    | st.builds(
        lambda files: json.dumps({"files": files}).encode(),
        st.dictionaries(
            st.sampled_from(["counters.json", "../outside", "/etc/passwd", "learner", "a/../b"]),
            st.fixed_dictionaries({"bytes": NODES, "sha256": NODES}) | NODES,
        ),
    )
)
def test_any_manifest_is_refused_with_a_message(tmp_path_factory, content):
    store = CheckpointStore(tmp_path_factory.mktemp("fuzz"), keep=3)
    first, second = write_one(store, 100), write_one(store, 200)
    (second / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError, match="use another checkpoint"):
        verify(second)
    assert store.latest() == first


@pytest.mark.parametrize("pointer", [b"", b"../../etc", b"\xff\xfe", b"step-9", b"a\0b"])
def test_a_damaged_pointer_is_no_loss(tmp_path, pointer):
    store = CheckpointStore(tmp_path, keep=3)
    write_one(store, 100)
    second = write_one(store, 200)
    (tmp_path / "LATEST").write_bytes(pointer)
    assert store.latest() == second

"""Checkpoints in a store that fsspec reaches: real file and memory ones, and one that fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from launch.control.checkpoint import BEST, CheckpointStore, verify
from launch.control.manifest import CheckpointError, checked_inventory
from launch.control.remote_store import RemoteStore
from launch.control.store_driver import StoreError
from launch.control.uploads import Uploads


class FailingFileSystem(MemoryFileSystem):
    """In memory; its n-th write fails, or is cut off in silence."""

    protocol = "failing"
    store: dict = {}  # noqa: RUF012 (as in the class above)
    pseudo_dirs = [""]  # noqa: RUF012
    n_left = -1
    cuts = False

    def _is_spoilt(self) -> bool:
        FailingFileSystem.n_left -= 1
        return self.n_left == -1

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if self._is_spoilt():
            if not self.cuts:
                raise ConnectionError("no answer")
            value = value[: len(value) // 2]
        super().pipe_file(path, value, mode, **kwargs)

    def put_file(self, lpath, rpath, **kwargs):
        self.pipe_file(rpath, Path(lpath).read_bytes())


fsspec.register_implementation("failing", FailingFileSystem, clobber=True)


@pytest.fixture(autouse=True)
def _stores_are_empty():
    for kind in (MemoryFileSystem, FailingFileSystem):
        kind.store.clear()
        kind.pseudo_dirs[:] = [""]
    FailingFileSystem.n_left = -1
    FailingFileSystem.cuts = False


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of an S3 server on this machine: needs pip install s3fs 'moto[server]'."""
    s3fs = pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        yield "s3://checkpoints"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(params=["file", "memory", "s3"])
def uri(request, tmp_path) -> str:
    if request.param == "s3":
        name = request.getfixturevalue("bucket")
        fs = fsspec.filesystem("s3")
        if fs.exists(name):
            fs.rm(name, recursive=True)
        fs.mkdir(name)
        return f"{name}/run"
    return f"file://{tmp_path}/remote" if request.param == "file" else "memory://bucket/run"


def write_one(store: CheckpointStore, env_steps: int, *, is_best: bool = False) -> Path:
    folder = store.begin(updates=env_steps, env_steps=env_steps)
    (folder / "learner").mkdir()
    (folder / "learner" / "model.bin").write_bytes(f"model {env_steps}".encode() * 100)
    (folder / "frames.bin").write_bytes(b"the same frames" * 100)
    counters = {"progress": {"env_steps": env_steps}}
    return store.commit(folder, counters, reason="test", is_best=is_best)


def steps_there(remote: RemoteStore, folder: Path) -> list[int]:
    """Of all that can be fetched and verified, in the order in which they would be tried."""
    found = []
    for name in remote.names():
        try:
            fetched = verify(remote.fetch(name, folder / f"try-{len(list(folder.iterdir()))}"))
        except CheckpointError:
            continue
        found.append(fetched["progress"]["env_steps"])
    return found


def test_what_is_there_is_not_copied_again_and_surplus_goes(uri, tmp_path):
    local, remote = CheckpointStore(tmp_path / "local", keep=5), RemoteStore(uri)
    remote.check_writable()
    assert remote.names() == []
    first = write_one(local, 100, is_best=True)
    assert remote.upload(first) > 2400
    assert remote.upload(first) == 0
    remote.upload(first, BEST)
    for steps in (200, 300):
        newest = write_one(local, steps)
        assert 800 < remote.upload(newest) < 2400  # the frames were there
    remote.remove_surplus(1)
    (tmp_path / "out").mkdir()
    assert steps_there(remote, tmp_path / "out") == [300, 100]
    fs, path = fsspec.core.url_to_fs(uri)
    objects = {p.rpartition("/")[2] for p in fs.find(f"{path}/objects")}
    kept = [entry for name in remote.names() for entry in remote.inventory(name).values()]
    assert objects == {entry.sha256 for entry in kept}


@pytest.mark.parametrize("cuts", [False, True], ids=["fails", "truncates"])
def test_a_write_that_fails_leaves_the_one_before(tmp_path, cuts):
    for n in count():
        _stores = FailingFileSystem.store
        _stores.clear()
        local = CheckpointStore(tmp_path / f"local-{n}", keep=1)
        remote = RemoteStore("failing://run")
        FailingFileSystem.n_left = -1
        remote.upload(write_one(local, 100))
        FailingFileSystem.cuts, FailingFileSystem.n_left = cuts, n
        second = write_one(local, 200)
        try:
            remote.upload(second)
            remote.remove_surplus(1)
            has_failed = False
        except StoreError:
            has_failed = True
        was_reached = FailingFileSystem.n_left < 0
        FailingFileSystem.n_left = -1
        (tmp_path / f"out-{n}").mkdir()
        there = steps_there(remote, tmp_path / f"out-{n}")
        assert there
        assert has_failed is was_reached
        remote.upload(second)  # the next attempt mends what was cut off
        assert steps_there(remote, tmp_path / f"out-{n}")[0] == 200
        if not was_reached:
            assert there == [200]
            break
    assert n >= 4  # two contents at least, the manifest, the pointer


def test_damaged_contents_are_found_out(uri, tmp_path):
    local, remote = CheckpointStore(tmp_path / "local", keep=5), RemoteStore(uri)
    remote.upload(write_one(local, 100))
    remote.upload(write_one(local, 200))
    fs, path = fsspec.core.url_to_fs(uri)
    model = remote.inventory(remote.names()[0])["learner/model.bin"].sha256
    fs.pipe_file(f"{path}/objects/{model}", b"m0del 200" * 100)
    (tmp_path / "out").mkdir()
    assert steps_there(remote, tmp_path / "out") == [100]


def test_damaged_contents_are_mended_in_turn(uri, tmp_path):
    local, remote = CheckpointStore(tmp_path / "local", keep=5), RemoteStore(uri)
    remote.upload(write_one(local, 100))
    fs, path = fsspec.core.url_to_fs(uri)
    frames = remote.inventory(remote.names()[0])["frames.bin"]
    fs.pipe_file(f"{path}/objects/{frames.sha256}", b"the s4me frames" * 100)
    remote = RemoteStore(uri)  # of a run that goes on, and knows nothing of what is there
    newest = write_one(local, 200)
    assert remote.upload(newest) < frames.n_bytes  # they are there by name and size
    (tmp_path / "out").mkdir()
    assert steps_there(remote, tmp_path / "out") == []
    assert remote.mend(newest, most_bytes=1) == 1  # what it did not upload itself comes first
    assert steps_there(remote, tmp_path / "out") == [200, 100]
    assert remote.mend(newest, most_bytes=10**6) == 0
    fs.pipe_file(f"{path}/objects/{frames.sha256}", b"the s4me frames" * 100)
    uploads = Uploads(remote, keep=5)
    uploads.submit(newest, None)
    assert uploads.wait(20)
    kinds = [outcome.kind for outcome in uploads.take_outcomes()]
    assert kinds == ["checkpoint_uploaded", "checkpoint_contents_mended"]
    assert steps_there(remote, tmp_path / "out") == [200, 100]


@pytest.mark.parametrize(
    ("name", "entry", "words"),
    [
        ("../x", {}, "outside the checkpoint"),
        ("/x", {}, "outside the checkpoint"),
        ("a//b", {}, "no plain file name"),
        ("x", {"bytes": -1}, "damaged at x"),
        ("x", {"bytes": True}, "damaged at x"),
        ("x", {"sha256": "../../x"}, "damaged at x"),
        ("counters.json/x", {}, "as a file and as a folder"),
    ],
)
def test_entries_are_checked_before_use(name, entry, words):
    good = {"bytes": 1, "sha256": "0" * 64}
    manifest = {"format": 1, "files": {"counters.json": good, name: good | entry}}
    with pytest.raises(CheckpointError, match=words):
        checked_inventory(manifest, "it", required="counters.json")


def test_a_newer_format_is_refused():
    with pytest.raises(CheckpointError, match="newer version"):
        checked_inventory({"format": 2, "files": {}}, "it", required="counters.json")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://bucket/x", "pip install s3fs"),
        ("nope://x", "Protocol not known"),
        ("file:///proc/x", "can't be written"),
    ],
)
def test_a_store_that_cannot_be_used_is_named(uri, words):
    if uri.startswith("s3"):
        try:
            import s3fs  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("the driver is installed")
    with pytest.raises(StoreError, match=words):
        RemoteStore(uri).check_writable()


def test_uploads_hold_what_they_read_and_tell_of_failures(tmp_path):
    local = CheckpointStore(tmp_path / "local", keep=1)
    uploads = Uploads(RemoteStore("failing://run"), keep=1)
    local.held = uploads.held
    FailingFileSystem.n_left = 0
    uploads.submit(write_one(local, 100), None)
    assert uploads.wait(20)
    (failed,) = uploads.take_outcomes()
    assert failed.kind == "checkpoint_upload_failed" and "no answer" in json.dumps(failed.fields)
    with Uploads._one_at_a_time:  # the store is busy
        first = write_one(local, 200)
        uploads.submit(first, None)
        second = write_one(local, 300)
        uploads.submit(second, None)
        third = write_one(local, 400)
        uploads.submit(third, None)
        assert uploads.held() == {first.name, third.name} and first.exists()
        assert not uploads.wait(0.01)
    assert uploads.wait(20) and not uploads.held()
    kinds = [outcome.kind for outcome in uploads.take_outcomes()]
    assert kinds == ["checkpoint_upload_skipped", "checkpoint_uploaded", "checkpoint_uploaded"]


def test_who_claimed_a_store_last_is_the_one_that_writes(uri, tmp_path):
    local = CheckpointStore(tmp_path / "local", keep=5)
    first, second = RemoteStore(uri, "first"), RemoteStore(uri, "second")
    first.claim("/runs/a on here")
    first.upload(write_one(local, 100))
    second.claim("/runs/b on there")
    assert first.writer() == ("second", "/runs/b on there")
    with pytest.raises(StoreError, match=r"belongs to another run now.*/runs/b on there"):
        first.upload(write_one(local, 200))
    assert len(first.names()) == 1  # nothing came of it
    second.upload(write_one(local, 300))
    (tmp_path / "out").mkdir()
    assert steps_there(second, tmp_path / "out") == [300, 100]

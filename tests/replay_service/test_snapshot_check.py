"""Snapshots that are damaged or forged: refused by the file's name, or usable; little memory."""

from __future__ import annotations

import io
import json
import shutil
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from replay_service import GameSpec, Replay, ReplayConfig, Segment, TargetConfig

MANY = settings(
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SPEC = GameSpec((2,), "float32", n_actions=3)
N_ROWS = 32
FILES = ("replay.json", "replay.npz", "frames-00000-000000003.npy")
MOST_BYTES = 20 << 20


def make_replay() -> Replay:
    config = ReplayConfig(capacity_mb=N_ROWS * 1e-4, text_mb=0.1, min_positions=1)
    return Replay(config, TargetConfig(unroll_steps=1, n_step=1), SPEC, seed=0)


@pytest.fixture(scope="module")
def sound(tmp_path_factory, make_segment) -> Path:
    folder = tmp_path_factory.mktemp("snapshot")
    replay = make_replay()
    for sequence in range(3):
        segment = make_segment(
            SPEC, 8, sequence=sequence, with_legal=True, with_text=sequence != 1, n_trainable=6
        )
        replay.add([segment])
    replay.sample(4)
    replay.save(folder)
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    return folder


@pytest.fixture(scope="module")
def forged(sound, tmp_path_factory) -> Path:
    """A copy for `with_content`; whole between two examples."""
    folder = tmp_path_factory.mktemp("forged")
    shutil.copytree(sound, folder, dirs_exist_ok=True)
    return folder


@contextmanager
def with_content(folder: Path, name: str, content: bytes) -> Iterator[Path]:
    """Meanwhile a file has this content; copies of the folder would take most of the time."""
    before = (folder / name).read_bytes()
    (folder / name).write_bytes(content)
    try:
        yield folder
    finally:
        (folder / name).write_bytes(before)


@pytest.fixture
def copy(sound, tmp_path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(sound, folder)
    return folder


@pytest.fixture(scope="module")
def later(make_segment) -> list[Segment]:
    """Twice around the ring, so that all that was there is evicted."""
    n_segments = 2 * N_ROWS // 10 + 1
    return [make_segment(SPEC, 10, actor=9, sequence=i, with_text=True) for i in range(n_segments)]


def load(folder: Path, later: list[Segment]) -> str:
    """Loads; "" if that worked, and then replay works too, else the error."""
    replay = make_replay()
    tracemalloc.start()
    try:
        replay.load(folder)
    except ValueError as error:
        assert replay.ring.high_row == replay.n_positions == 0
        assert str(folder) in str(error) and len(str(error)) < 2_000
        return str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST_BYTES, f"{peak:,} bytes"
    for segment in later:
        batch = replay.sample(24)
        for name in ("obs", "reward", "policy", "root_value", "importance"):
            assert bool(getattr(batch, name).float().isfinite().all()), name
        replay.update_priorities(batch.handles, np.ones(24, np.float32))
        replay.sample_text(4)
        replay.least_refreshed(2)
        assert replay.add([segment]).n_positions == 10
    return ""


def paths(node: object, prefix: tuple = ()) -> Iterator[tuple]:
    """Of everything within nested lists and objects."""
    if prefix:
        yield prefix
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items if isinstance(node, dict | list) else ():
        if isinstance(value, dict | list):
            yield from paths(value, (*prefix, key))
        else:
            yield (*prefix, key)


def put(node, path: tuple, value: object) -> None:
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.sampled_from([2**31, 2**62, 2**63, 10**40, -1, 1e308, float("nan"), float("inf")])
    | st.text(max_size=4)
)
NODES = st.recursive(
    LEAVES,
    lambda node: st.lists(node, max_size=3) | st.dictionaries(st.text(max_size=3), node),
    max_leaves=8,
)


def test_a_sound_one_is_loaded(copy, later):
    assert load(copy, later) == ""


@settings(MANY, max_examples=1_000)
@given(number=st.integers(0, 10_000), value=NODES)
@example(0, 0)
def test_any_value_anywhere_in_the_state(forged, later, number, value):
    state = json.loads((forged / "replay.json").read_text())
    found = list(paths(state))
    path = found[number % len(found)]
    put(state, path, value)
    with with_content(forged, "replay.json", json.dumps(state).encode()):
        error = load(forged, later)
    if error and path[0] not in ("frame_writes", "high_slot", "high_row", "spec"):
        assert "replay." in error


@MANY
@given(content=st.binary(max_size=100) | NODES.map(lambda node: json.dumps(node).encode()))
@example(b"[" * 100_000)
@example(b"9" * 10_000)
def test_any_state_file(forged, later, content):
    with with_content(forged, "replay.json", content):
        assert "replay.json" in load(forged, later)


@settings(MANY, max_examples=1_000)
@given(
    name=st.sampled_from(FILES[1:]),
    flips=st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 255)), max_size=4),
    length=st.none() | st.integers(0, 20_000),
    in_header=st.booleans(),
)
def test_flipped_and_missing_bytes(forged, later, name, flips, length, in_header):
    content = bytearray((forged / name).read_bytes()[:length])
    for position, mask in flips:
        if content:
            content[position % min(len(content), 128 if in_header else 10**6)] ^= mask
    with with_content(forged, name, bytes(content)):
        load(forged, later)


def rewritten(folder: Path, name: str, change) -> bytes:
    """replay.npz with `change(array)` as member `name`, whose checksum is right then."""
    with zipfile.ZipFile(folder / "replay.npz") as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    array = np.load(io.BytesIO(members[f"{name}.npy"]), allow_pickle=False).copy()
    file, made = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array(file, change(array), (1, 0))
    members[f"{name}.npy"] = file.getvalue()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return made.getvalue()


COLUMNS = (
    "action", "reward", "policy", "root_value", "end", "ending", "weight_version",
    "target_version", "generation", "prompt", "options", "legal", "priority", "sample_weight",
    "text_weight",
)  # fmt: skip


@settings(MANY, max_examples=1_000)
@given(
    column=st.sampled_from(COLUMNS),
    row=st.integers(0, 30),
    value=st.sampled_from([-(2**31), -2, -1, 0, 1, 2, 3, 7, 100, 2**31 - 1])
    | st.sampled_from([float("nan"), float("inf"), -1.0, 1e-30, 1e30]),
)
def test_any_value_in_a_column(forged, later, column, row, value):
    def change(array: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            array[row % len(array)] = np.asarray(value).astype(array.dtype)
        return array

    with with_content(forged, "replay.npz", rewritten(forged, column, change)):
        load(forged, later)


@MANY
@given(content=NODES | st.fixed_dictionaries({"prompt": NODES, "options": NODES}))
def test_any_texts(forged, later, content):
    packed = np.frombuffer(json.dumps(content).encode(), np.uint8)
    with with_content(forged, "replay.npz", rewritten(forged, "text", lambda array: packed)):
        assert "replay.npz" in load(forged, later)


@pytest.mark.parametrize("name", ["text.npy", "action.npy"])
def test_an_absurd_size_in_a_header_takes_no_memory(copy, later, name):
    path = copy / "replay.npz"
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**13,)}
    np.lib.format.write_array_header_1_0(file, header)
    members[name] = file.getvalue()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    assert "10000000000000" in load(copy, later)


def test_an_archive_that_unpacks_to_more_is_refused(copy, later):
    path = copy / "replay.npz"
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    members["text.npy"] += b"\0" * (200 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    assert "is compressed" in load(copy, later)

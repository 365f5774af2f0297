"""Manifests, pointers, summaries and legacy files with any content: usable, or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from launch.control import inspection
from launch.control.checkpoint import (
    COUNTERS,
    LATEST,
    MANIFEST,
    CheckpointError,
    CheckpointStore,
    verify,
)
from launch.control.legacy_steps import rebuild_steps
from launch.control.run_directory import is_finished

MANY = settings(
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(
        [
            "..",
            "/etc/passwd",
            "a/../../b",
            "\0",
            "\ud800",
            "x" * 5_000,
            "",
            ".",
            COUNTERS,
            "\x1b[2J",
        ]
    )
)
NODES = st.recursive(
    LEAVES,
    lambda node: (
        st.lists(node, max_size=3)
        | st.dictionaries(LEAVES.filter(lambda v: isinstance(v, str)), node, max_size=3)
    ),
    max_leaves=8,
)
TEXTS = NODES.map(lambda node: json.dumps(node).encode()) | st.binary(max_size=60)


def commit(store: CheckpointStore, env_steps: int) -> Path:
    folder = store.begin(updates=env_steps, env_steps=env_steps)
    (folder / "model.bin").write_bytes(b"weights")
    return store.commit(folder, {"progress": {"env_steps": env_steps}}, reason="test")


@pytest.fixture
def run(tmp_path: Path) -> tuple[CheckpointStore, Path, Path]:
    """A store with two checkpoints, older and newer."""
    store = CheckpointStore(tmp_path / "run" / "checkpoints", keep=5)
    return store, commit(store, 1), commit(store, 2)


def printed(path: Path) -> None:
    """`inspect` shows it without a control character, or refuses it."""
    try:
        text = inspection.describe(path)
    except (ValueError, OSError):
        return
    assert all(line.isprintable() for line in text.splitlines())


@settings(MANY, max_examples=800)
@given(content=TEXTS, files=st.booleans(), entry=NODES)
@example(b"[" * 100_000, False, None)
@example(b'{"files": ' + b"9" * 5_000 + b"}", False, None)
def test_a_manifest_of_any_content(run, content, files, entry):
    store, older, newer = run
    sound = (newer / MANIFEST).read_bytes()
    if files:  # a manifest that is right but for one more entry
        manifest = json.loads(sound)
        extra = entry if isinstance(entry, dict) else {"x" * 300: entry}
        manifest["files"] |= extra
        content = json.dumps(manifest).encode()
    try:
        (newer / MANIFEST).write_bytes(content)
        try:
            verify(newer)
        except CheckpointError as error:
            assert str(newer) in str(error) and len(str(error)) < 7_000
            assert store.latest() == older
        else:
            assert store.latest() == newer
        printed(newer)
        printed(newer.parent.parent)
        assert verify(commit(store, 3))  # what is damaged spoils no checkpoint after it
    finally:
        shutil.rmtree(newer.parent / "step-0000000003-update-00000003", ignore_errors=True)
        for again in newer.parent.glob("*-again-*"):
            shutil.rmtree(again)
        (newer.parent / LATEST).write_text(newer.name + "\n")
        (newer / MANIFEST).write_bytes(sound)


def test_a_wrong_checksum_of_the_checkpoint_before_is_not_taken_over(run):
    store, _, newer = run
    manifest = json.loads((newer / MANIFEST).read_text())
    manifest["files"]["model.bin"]["sha256"] = "not a checksum"
    (newer / MANIFEST).write_text(json.dumps(manifest))
    folder = store.begin(updates=3, env_steps=3)
    (folder / "model.bin").hardlink_to(newer / "model.bin")
    third = store.commit(folder, {"progress": {}}, reason="test")
    assert verify(third)


@MANY
@given(content=st.binary(max_size=300) | LEAVES.map(lambda v: str(v).encode("utf-8", "replace")))
def test_a_pointer_of_any_content(run, content):
    store, older, newer = run
    (newer.parent / LATEST).write_bytes(content)
    assert store.latest() in (older, newer)
    assert store.newest() in (None, older, newer)
    printed(newer.parent.parent)


@MANY
@given(content=TEXTS)
def test_a_summary_of_any_content(tmp_path, content):
    (tmp_path / "summary.json").write_bytes(content)
    assert is_finished(tmp_path) in (False, True)


@settings(MANY, max_examples=800)
@given(content=TEXTS, weights=TEXTS, field=st.sampled_from(["save_state", "vector_env", ""]))
@example(b"[" * 100_000, b"", "")
def test_a_legacy_pair_of_any_content(tmp_path, content, weights, field):
    path = tmp_path / "model.json"
    if field:
        sound = {
            "save_state": {"global_step": 0, "global_update": 0},
            "vector_env": {"num_envs": 2},
        }
        try:
            sound[field] = json.loads(content)
        except (ValueError, RecursionError):
            return
        content = json.dumps(sound).encode()
    path.write_bytes(content)
    path.with_suffix(".pt").write_bytes(weights)
    report = rebuild_steps(path, assumed_rollout_steps=64, dry_run=True)
    assert report.outcome in ("rebuilt", "kept", "failed") and report.text
    assert path.read_bytes() == content
    printed(path)

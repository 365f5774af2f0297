"""Checkpoints of our older formats become current ones, and a run goes on from them."""

import json
import shlex
import shutil

import pytest

from launch import migrate, train
from launch.control.checkpoint import MANIFEST, METADATA, CheckpointStore, verify, write_manifest
from launch.control.upgrade import STEPS
from replay_service.snapshot import FORMAT_VERSION
from tests.replay_service.test_old_snapshot import make_older

SERIAL = shlex.split(
    """--preset cartpole --runtime serial --device cpu --acting.segment-length 10
    --acting.collect-steps 8 --simulations 4 --replay.min-positions 40 --learner.batch-size 16
    --limiter.samples-per-insert 4 --control.updates-per-call 2 --evaluation.every-env-steps 100000
    --evaluation.final-episodes 1 --evaluation.max-steps 20"""
)


def run(folder, n_steps: int) -> int:
    return train.main([*SERIAL, "--run-dir", str(folder), "--total-env-steps", str(n_steps)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old") / "run"
    assert run(folder, 120) == 0
    return folder


@pytest.fixture
def old_run(finished, tmp_path):
    """A run whose newest checkpoint is as the first ones were."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    checkpoint = newest(folder)
    make_older(checkpoint / "replay", version=1)
    (checkpoint / METADATA).unlink()
    (checkpoint / "learner" / "average.safetensors").unlink()
    (checkpoint / MANIFEST).unlink()
    write_manifest(checkpoint, {})
    return folder


def newest(folder):
    return CheckpointStore(folder / "checkpoints", keep=2).newest()


def upgraded(folder, capsys, *words: str) -> str:
    migrate.main(["upgrade", str(folder), *words])
    return capsys.readouterr().out


def test_an_old_checkpoint_becomes_a_current_one(old_run, capsys):
    checkpoint = newest(old_run)
    before = verify(checkpoint)
    text = upgraded(old_run, capsys)
    assert "metadata, averaged weights, replay format" in text
    assert verify(checkpoint) == before
    assert verify(checkpoint.with_name(checkpoint.name + ".bak")) == before
    state = json.loads((checkpoint / "replay" / "replay.json").read_text())
    assert state["format_version"] == FORMAT_VERSION
    audit = json.loads((checkpoint / METADATA).read_text())["upgraded"]
    assert audit["steps"] == [step.name for step in STEPS]
    again = upgraded(old_run, capsys)
    assert "0 upgraded" in again and "0 failed" in again
    assert run(old_run, 200) == 0
    assert verify(newest(old_run))["progress"]["env_steps"] >= 200


def test_a_dry_run_changes_nothing(old_run, capsys):
    before = {p: p.stat().st_mtime_ns for p in old_run.rglob("*")}
    text = upgraded(old_run, capsys, "--dry-run")
    assert "would get metadata, averaged weights" in text and "nothing was written" in text
    assert {p: p.stat().st_mtime_ns for p in old_run.rglob("*")} == before


def test_an_upgrade_killed_between_its_renames_is_taken_back(old_run, capsys):
    checkpoint = newest(old_run)
    checkpoint.rename(checkpoint.with_name(checkpoint.name + ".bak"))
    assert "metadata, averaged weights" in upgraded(old_run, capsys)
    verify(checkpoint)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("newer replay", "format_version 99, this program writes"),
        ("no settings", "put the run's config.yaml there"),
        ("flipped", "differs from its manifest"),
    ],
)
def test_what_can_not_be_upgraded_stays_as_it_is(old_run, capsys, damage, words):
    checkpoint = newest(old_run)
    if damage == "newer replay":
        path = checkpoint / "replay" / "replay.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
        (checkpoint / MANIFEST).unlink()
        write_manifest(checkpoint, {})
    elif damage == "no settings":
        (old_run / "config.yaml").unlink()
    else:
        with (checkpoint / "learner" / "model.safetensors").open("r+b") as file:
            file.seek(500)
            file.write(b"\xff\x00\xff")
    before = {p: p.read_bytes() for p in checkpoint.rglob("*") if p.is_file()}
    with pytest.raises(SystemExit) as ended:
        migrate.main(["upgrade", str(old_run)])
    assert ended.value.code == 1 and words in capsys.readouterr().out
    assert {p: p.read_bytes() for p in checkpoint.rglob("*") if p.is_file()} == before
    assert not list(checkpoint.parent.glob(".tmp*"))

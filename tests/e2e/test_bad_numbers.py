"""Serial runs whose learner is spoilt on the way: skipped, rolled back, or ended with a reason."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from launch import train
from learner.learner import Learner
from learner.learner_actor import LearnerActor
from learner.weight_server_actor import WeightServerActor

SMALL = shlex.split(
    """--preset cartpole --runtime serial --device cpu --envs-per-actor 2 --acting.num-actors 2
    --acting.segment-length 10 --acting.collect-steps 8 --simulations 4 --total-env-steps 360
    --replay.min-positions 40 --learner.batch-size 16 --limiter.samples-per-insert 4
    --control.updates-per-call 2 --learner.publish-every 2 --evaluation.every-env-steps 10000
    --evaluation.final-episodes 1 --control.checkpoint-every-env-steps 120
    --control.bad-updates-before-rollback 4 --control.max-rollbacks 2
    --learner.keep-bad-batches 3
    """
)


def run(folder: Path, *extra: str) -> int:
    return train.main([*SMALL, "--run-dir", str(folder), *extra])


def events(folder: Path, kind: str) -> list[dict]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == kind]


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 4
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def newest(folder: Path) -> Path:
    return folder / "checkpoints" / (folder / "checkpoints" / "LATEST").read_text().strip()


def assert_finite(folder: Path) -> None:
    for path in (newest(folder) / "learner").glob("*.safetensors"):
        assert all(np.isfinite(value).all() for value in load_file(path).values()), path


def spoil(learner: Learner) -> None:
    with torch.no_grad():
        learner.model.latent_in.weight[0, 0] = torch.nan


@pytest.fixture
def spoil_at(monkeypatch):
    """Spoils a weight before the learner's `at`-th update, `times` times."""

    def install(at: int, times: int) -> None:
        left = [times]
        real = Learner.update

        def update(learner, batch):
            if left[0] and learner.updates == at:
                left[0] -= 1
                spoil(learner)
            return real(learner, batch)

        monkeypatch.setattr(Learner, "update", update)

    return install


@pytest.fixture
def published(monkeypatch) -> list[int]:
    versions: list[int] = []
    real = WeightServerActor.push

    def push(server, weights):
        assert all(np.isfinite(value).all() for value in weights.tensors.values())
        versions.append(weights.version)
        real(server, weights)

    monkeypatch.setattr(WeightServerActor, "push", push)
    return versions


def test_a_spoilt_learner_goes_back_to_the_checkpoint_and_the_run_goes_on(
    tmp_path, monkeypatch, spoil_at, published
):
    after: list[dict[str, str]] = []
    real = LearnerActor.roll_back

    def roll_back(actor, folder, acted):
        version = real(actor, folder, acted)
        actor.save(tmp_path / "after")
        after.extend((hashes(Path(folder)), hashes(tmp_path / "after")))
        return version

    monkeypatch.setattr(LearnerActor, "roll_back", roll_back)
    spoil_at(60, times=1)
    folder = tmp_path / "run"
    assert run(folder) == 0
    skipped = events(folder, "update_skipped")
    assert [e["update"] for e in skipped] == [60, 61, 62, 63]
    assert all({"output", "loss"} <= set(e["not_finite"]) for e in skipped)
    assert [Path(e["file"]).is_file() for e in skipped] == [True, False, False, False]
    (back,) = events(folder, "rolled_back")
    assert Path(back["source"]).parent == folder / "checkpoints"
    assert after[0] == after[1]
    assert published == sorted(set(published)) and back["weight_version"] in published
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["finished"] and summary["metrics"]["rollbacks"] == 1
    assert summary["metrics"]["skipped_total"] == 4
    assert_finite(folder)
    with np.load(skipped[0]["file"], allow_pickle=False) as saved:
        assert saved["obs"].shape[0] == saved["importance"].shape[0] == 16
        assert np.isfinite(saved["obs"]).all()  # it was the weights


def test_a_learner_that_never_gets_further_ends_the_run_with_the_reason(tmp_path, capsys, spoil_at):
    spoil_at(60, times=1000)
    folder = tmp_path / "run"
    assert run(folder) == 1
    text = capsys.readouterr().err
    for word in ("4 updates in a row", "2 roll-backs", "update 63", "bad-batches", "learning_rate"):
        assert word in text, text
    assert len(events(folder, "rolled_back")) == 2
    assert_finite(folder)
    page = (folder / "report.html").read_text()
    assert 'class="state failed"' in page
    assert page.count("<td>rolled_back</td>") == 2, "the report of a failed run shows why"


def test_without_a_checkpoint_the_run_ends_and_saves_nothing(tmp_path, capsys, spoil_at):
    spoil_at(1, times=1)
    folder = tmp_path / "run"
    assert run(folder) == 1
    assert "no checkpoint yet" in capsys.readouterr().err
    assert not (folder / "checkpoints" / "LATEST").exists()


def test_a_checkpoint_never_holds_a_spoilt_learner(tmp_path, spoil_at):
    """Also where too few updates in a row were bad to act on."""
    spoil_at(60, times=1)
    folder = tmp_path / "run"
    assert run(folder, "--control.bad-updates-before-rollback", "10000") == 0
    (back,) = events(folder, "rolled_back")
    assert "state was not finite" in back["cause"]
    assert_finite(folder)

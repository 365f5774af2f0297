"""Serial runs whose language learner is spoilt on the way; what it saves and publishes is not."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from launch import train
from learner.language.language_learner import LanguageLearner

MARIO = shlex.split(
    """--preset mario-quick --runtime serial --device cpu --envs-per-actor 2
    --acting.num-actors 1 --acting.segment-length 8 --acting.collect-steps 16 --simulations 4
    --total-env-steps 160 --replay.min-positions 16 --replay.capacity-mb 50
    --learner.batch-size 8 --limiter.samples-per-insert 1 --control.updates-per-call 1
    --evaluation.every-env-steps 1000 --evaluation.final-episodes 1 --evaluation.max-steps 8
    --schedule.wm-train-freq 1 --schedule.llm-train-freq 1
    --language.publish-every 1 --language.batch-size 4 --language.micro-batch-size 4
    --control.checkpoint-every-env-steps 32 --control.bad-updates-before-rollback 2
    --control.max-rollbacks 2"""
)


def events(folder: Path, kind: str) -> list[dict]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == kind]


def assert_finite(folder: Path) -> None:
    files = [
        *(folder / "checkpoints").glob("*/language/*.safetensors"),
        *(folder / "adapters").glob("*/adapter_model.safetensors"),
    ]
    assert files
    for path in files:
        assert all(bool(torch.isfinite(v).all()) for v in load_file(path).values()), path


@pytest.fixture
def spoil_at(monkeypatch):
    """Spoils the adapter before the language learner's `at`-th update, `times` times."""

    def install(at: int, times: int) -> None:
        left = [times]
        real = LanguageLearner.update

        def update(learner, batch):
            if left[0] and learner.updates >= at:
                left[0] -= 1
                next(iter(learner._trained.values())).data[0, 0] = torch.nan
            return real(learner, batch)

        monkeypatch.setattr(LanguageLearner, "update", update)

    return install


def test_a_spoilt_adapter_goes_back_to_the_checkpoint_and_the_run_goes_on(tmp_path, spoil_at):
    spoil_at(4, times=1)
    folder = tmp_path / "run"
    assert train.main([*MARIO, "--run-dir", str(folder)]) == 0
    skipped = events(folder, "update_skipped")
    assert [e["child"] for e in skipped] == ["language-learner"] * len(skipped)
    assert 1 <= len(skipped) <= 2 and Path(skipped[0]["file"]).is_file()
    (back,) = events(folder, "rolled_back")
    assert back["child"] == "language-learner"
    versions = [e["version"] for e in events(folder, "adapter_published")]
    assert versions == sorted(set(versions)) and back["adapter_version"] in versions
    assert all(e["accepted"] for e in events(folder, "adapter_published"))
    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    assert metrics["language_rollbacks"] == 1 and metrics["rollbacks"] == 0
    assert metrics["language_skipped_total"] == len(skipped)
    assert metrics["language_grad_norm"] > 0
    assert_finite(folder)


def test_a_language_learner_that_gets_no_further_ends_the_run_with_the_reason(
    tmp_path, spoil_at, capsys
):
    spoil_at(6, times=1000)
    folder = tmp_path / "run"
    longer = ["--limiter.samples-per-insert", "3"]
    assert train.main([*MARIO, *longer, "--run-dir", str(folder)]) == 1
    text = capsys.readouterr().err
    for word in ("language-learner", "2 roll-backs", "bad-batches", "language.learning_rate"):
        assert word in text, text
    assert len(events(folder, "rolled_back")) == 2
    assert_finite(folder)

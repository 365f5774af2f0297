"""A disk that takes no large files any more: the run goes on, says so, older checkpoints stay."""

import json
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

from launch import train
from launch.control.checkpoint import CheckpointStore, verify

ROOT = Path(__file__).resolve().parents[2]
SERIAL = shlex.split(
    """--preset cartpole --runtime serial --device cpu --acting.segment-length 10
    --acting.collect-steps 8 --simulations 4 --replay.min-positions 40 --learner.batch-size 16
    --limiter.samples-per-insert 4 --control.updates-per-call 2 --evaluation.every-env-steps 100000
    --evaluation.final-episodes 1 --evaluation.max-steps 20
    --control.checkpoint-every-env-steps 60"""
)
FILE_LIMIT = 100_000  # bytes: logs and replay fit, weights do not


def run(folder: Path, total: int, *extra: str) -> int:
    """In this process."""
    words = [*SERIAL, "--run-dir", str(folder), "--total-env-steps", str(total)]
    return train.main([*words, *extra])


def run_with_full_disk(folder: Path, total: int) -> subprocess.CompletedProcess:
    """In a process of its own, which can't write large files."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))

    words = [*SERIAL, "--run-dir", str(folder), "--total-env-steps", str(total)]
    return subprocess.run(
        [sys.executable, "launch/train.py", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=limit,
    )


def events(folder: Path, kind: str) -> list[dict]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == kind]


def test_a_full_disk_costs_checkpoints_not_the_run(tmp_path):
    folder = tmp_path / "run"
    assert run(folder, 130) == 0
    kept = CheckpointStore(folder / "checkpoints", keep=2).newest()

    full = run_with_full_disk(folder, 330)
    assert full.returncode == 1, full.stdout + full.stderr
    failed = events(folder, "checkpoint_failed")
    assert len(failed) >= 2, "it went on after the first one"
    assert all("model.safetensors" in e["cause"] and e["newest"] == str(kept) for e in failed)
    assert "model.safetensors can't be written" in full.stderr
    assert "no checkpoint was made of the run as it is" in full.stderr
    assert CheckpointStore(folder / "checkpoints", keep=2).latest() == kept
    kept_steps = verify(kept)["progress"]["env_steps"]

    assert run(folder, 330) == 0
    assert events(folder, "resumed")[-1]["env_steps"] == kept_steps
    assert not list((folder / "checkpoints").glob(".tmp*"))


def test_the_best_evaluations_checkpoint_is_pointed_at(tmp_path):
    folder = tmp_path / "run"
    assert run(folder, 400, "--evaluation.every-env-steps", "70") == 0
    best = (folder / "checkpoints" / "BEST").read_text().strip()
    evaluations = events(folder, "evaluation")
    returns = [sum(e["returns"]) / len(e["returns"]) for e in evaluations]
    first_best = evaluations[returns.index(max(returns))]
    saved = verify(folder / "checkpoints" / best)["progress"]
    assert saved["best_return"] == max(returns)
    assert first_best["env_steps"] <= saved["env_steps"] <= first_best["env_steps"] + 70

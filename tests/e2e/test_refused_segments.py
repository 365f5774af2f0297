"""Serial runs whose env actor hands over segments that replay refuses."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from actors.acting import ActingLoop
from launch import train
from launch.control.refusals import REFUSED_IN_A_ROW

SMALL = shlex.split(
    """--preset cartpole --runtime serial --device cpu --envs-per-actor 2 --acting.num-actors 2
    --acting.segment-length 10 --acting.collect-steps 8 --simulations 4 --total-env-steps 400
    --replay.min-positions 40 --learner.batch-size 16 --limiter.samples-per-insert 4
    --control.updates-per-call 2 --evaluation.every-env-steps 10000
    --evaluation.final-episodes 1 --control.max-restarts 3
    """
)


def events(folder: Path, kind: str) -> list[dict]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == kind]


@pytest.fixture
def spoil(monkeypatch):
    """Env actor 1 sends NaN rewards, up to an incarnation."""

    def install(last_incarnation: int) -> None:
        real = ActingLoop.collect

        def collect(loop, *asked):
            report, segments = real(loop, *asked)
            identity = loop._identity
            if identity.actor == 1 and identity.incarnation <= last_incarnation:
                segments = [
                    dataclasses.replace(s, reward=s.reward * np.float32("nan")).with_checksum()
                    for s in segments
                ]
            return report, segments

        monkeypatch.setattr(ActingLoop, "collect", collect)

    return install


def test_an_actor_whose_segments_are_refused_is_replaced_and_replay_goes_on(tmp_path, spoil):
    spoil(last_incarnation=0)
    folder = tmp_path / "run"
    assert train.main([*SMALL, "--run-dir", str(folder)]) == 0
    rejected = events(folder, "segment_rejected")
    assert {e["child"] for e in rejected} == {"env-actor-1"}
    assert all("reward holds NaN" in e["reason"] for e in rejected)
    (failed,) = events(folder, "child_failed")
    assert failed["child"] == "env-actor-1"
    assert f"{REFUSED_IN_A_ROW} payloads in a row" in failed["cause"]
    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    assert metrics["replay_rejected_total"] == len(rejected)
    assert metrics["restarts"] == 1 and metrics["skipped_total"] == 0


def test_an_actor_that_never_gets_better_ends_the_run_with_the_reason(tmp_path, spoil, capsys):
    spoil(last_incarnation=100)
    folder = tmp_path / "run"
    arguments = [*SMALL, "--run-dir", str(folder), "--total-env-steps", "4000"]
    assert train.main([*arguments, "--control.min-actors", "2"]) == 1
    text = capsys.readouterr().err
    assert "env-actor-1" in text and "reward holds NaN" in text and "min_actors" in text

"""A small finished run that tests of what comes afterwards share."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from launch import train

SMALL = shlex.split(
    """--preset cartpole --runtime serial --device cpu --envs-per-actor 2
    --acting.segment-length 10 --acting.collect-steps 8 --simulations 4 --total-env-steps 160
    --replay.min-positions 40 --learner.batch-size 16 --limiter.samples-per-insert 4
    --control.updates-per-call 2 --learner.publish-every 4 --evaluation.every-env-steps 60
    --evaluation.n-episodes 2 --evaluation.final-episodes 2 --evaluation.max-steps 30
    --evaluation.video true --control.log-period-s 0.05"""
)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CartPole, 160 env steps, with videos; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "cartpole-run"
    assert train.main([*SMALL, "--run-dir", str(folder)]) == 0
    return folder

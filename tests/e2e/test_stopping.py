"""Ends that are no ends: signals, the clock, exceptions, memory; what is saved and what is left."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import psutil
import pytest
import torch

from launch import train
from launch.control.call_book import RunFailed
from launch.control.checkpoint import CheckpointStore, verify
from launch.control.reporter import Reporter
from launch.control.shutdown import EXIT_FAILED, EXIT_FINISHED, EXIT_INTERRUPTED, EXIT_RESUMABLE
from learner.learner import Learner

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 420
ORPHAN_LIMIT_S = 30.0
# Where the driver was killed, Ray's agents look for their dead head node for a minute.
AGENTS_LIMIT_S = 150.0
CARTPOLE = shlex.split(
    """--preset cartpole --device cpu --simulations 4 --acting.segment-length 10
    --acting.collect-steps 8 --replay.min-positions 40 --learner.batch-size 16
    --limiter.samples-per-insert 6 --evaluation.every-env-steps 100000 --evaluation.max-steps 20
    --evaluation.final-episodes 1 --control.updates-per-call 2"""
)
SERIAL = [*CARTPOLE, "--runtime", "serial", "--control.checkpoint-every-env-steps", "64"]


def events(folder: Path, kind: str) -> list[dict]:
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [e for e in map(json.loads, lines) if e["event"] == kind]


def newest(folder: Path) -> dict:
    """Counters of the newest checkpoint, which must be whole."""
    found = CheckpointStore(folder / "checkpoints", keep=2)
    assert found.latest() == found.newest()
    return verify(found.newest())


# ---------------------------------------------------------------- one process


def run(folder: Path, n_steps: int, *extra: str) -> int:
    return train.main(
        [*SERIAL, "--run-dir", str(folder), "--total-env-steps", str(n_steps), *extra]
    )


def goes_on_to_the_end(folder: Path, n_steps: int) -> None:
    """The same command ends a run that was rescued, from the checkpoint that was rescued."""
    rescued = newest(folder)
    assert rescued["reason"] == "rescued"
    assert run(folder, n_steps) == EXIT_FINISHED
    assert events(folder, "resumed")[-1]["env_steps"] == rescued["progress"]["env_steps"]


def test_an_exception_in_the_driver_ends_in_a_checkpoint(tmp_path, monkeypatch, capsys):
    """Of a kind that happens again at every turn, so that the answers in flight fail too."""
    calls = count()

    def fail(self, report):
        if next(calls) >= 20:
            raise ZeroDivisionError("the driver has a bug")

    before = {file.path for file in psutil.Process().open_files()}
    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "episodes", fail)
        assert run(tmp_path / "run", 400) == EXIT_FAILED
    text = capsys.readouterr().err
    assert "Traceback" in text and "error: the driver has a bug" in text
    assert newest(tmp_path / "run")["progress"]["env_steps"] >= 150
    assert events(tmp_path / "run", "failed")[0]["cause"].startswith("ZeroDivisionError")
    assert {file.path for file in psutil.Process().open_files()} == before
    goes_on_to_the_end(tmp_path / "run", 400)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_a_learner_without_memory_ends_in_a_checkpoint(tmp_path, monkeypatch, error):
    update = Learner.update

    def fail(self, batch):
        if self.updates >= 21:
            raise error("tried to allocate 20.00 GiB")
        return update(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", fail)
        assert run(tmp_path / "run", 400) == EXIT_FAILED
    learner = tmp_path / "run" / "checkpoints"
    saved = json.loads((CheckpointStore(learner, 2).newest() / "learner/learner.json").read_text())
    assert saved["updates"] == 21
    goes_on_to_the_end(tmp_path / "run", 400)


def test_what_is_in_doubt_is_not_saved(tmp_path, monkeypatch, capsys):
    def fail(self, batch):
        raise RunFailed("the loss is not finite", is_state_sound=False)

    monkeypatch.setattr(Learner, "update", fail)
    assert run(tmp_path / "run", 400) == EXIT_FAILED
    assert newest(tmp_path / "run")["reason"] == "periodic"
    assert "in doubt" in capsys.readouterr().err


def test_a_failure_before_the_checkpoint_is_loaded_saves_nothing(tmp_path, monkeypatch, capsys):
    """Else the fresh weights of children that never got theirs would pass for the run's."""

    def fail(self, folder):
        raise ValueError("no room for the weights")

    assert run(tmp_path / "run", 64) == EXIT_FINISHED
    before = CheckpointStore(tmp_path / "run" / "checkpoints", 2).names()
    monkeypatch.setattr(Learner, "load", fail)
    assert run(tmp_path / "run", 400) == EXIT_FAILED
    assert CheckpointStore(tmp_path / "run" / "checkpoints", 2).names() == before
    assert "not begun" in capsys.readouterr().err


def test_the_clock_ends_a_run_in_a_checkpoint(tmp_path, capsys):
    assert run(tmp_path / "run", 1_000_000, "--max-hours", "0.0008") == EXIT_RESUMABLE
    text = capsys.readouterr().out
    assert "stopped by control.max_hours=0.0008; the same command goes on" in text
    stopped = newest(tmp_path / "run")
    assert stopped["reason"] == "stopped"
    steps = stopped["progress"]["env_steps"]
    assert run(tmp_path / "run", steps + 40) == EXIT_FINISHED
    assert events(tmp_path / "run", "resumed")[-1]["env_steps"] == steps


def test_a_run_that_began_from_a_path_says_how_it_goes_on(tmp_path, capsys):
    assert run(tmp_path / "old", 64) == EXIT_FINISHED
    path = str(tmp_path / "old")
    limits = ["--resume", path, "--max-hours", "0.0003"]
    assert run(tmp_path / "new", 1_000_000, *limits) == EXIT_RESUMABLE
    assert "--resume auto" in capsys.readouterr().out


# ---------------------------------------------------------------- real Ray processes


class RayRun:
    """`train.py` in a process of its own; remembers every process that ever ran below it."""

    def __init__(self, folder: Path, *extra: str) -> None:
        self.folder = folder
        self.log = folder.with_suffix(".log")
        command = [sys.executable, "launch/train.py", *CARTPOLE, "--run-dir", str(folder)]
        limits = ["--total-env-steps", "1000000", "--control.checkpoint-every-env-steps", "100"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *limits, "--control.log-period-s", "1", *extra],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.seen: set[psutil.Process] = set()

    def look(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.seen.update(psutil.Process(self.process.pid).children(recursive=True))

    def wait_for(self, condition):
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            self.look()
            value = condition()
            if value:
                return value
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        pytest.fail(f"waited {LIMIT_S} s:\n{self.log.read_text()}")

    def end(self, orphan_limit_s: float = ORPHAN_LIMIT_S) -> int:
        """The exit code; every process that ran below the driver must be gone soon after it."""
        deadline = time.monotonic() + LIMIT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            self.look()
            time.sleep(0.05)
        code = self.process.wait(timeout=1)
        _, alive = psutil.wait_procs(list(self.seen), timeout=orphan_limit_s)
        left = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        assert len(self.seen) > 5
        assert not left, [(p.pid, p.cmdline()[:3]) for p in left]
        return code

    def kill(self) -> None:
        for process in [psutil.Process(self.process.pid), *self.seen]:
            if process.is_running():
                process.kill()

    def checkpoints(self) -> list[dict]:
        return events(self.folder, "checkpoint")

    def pid(self, child: str) -> int:
        """0 until the monitor has seen the child; a checkpoint may come before."""
        path = self.folder / "heartbeat.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return json.loads(lines[-1])["processes"].get(child, {}).get("pid", 0) if lines else 0


@pytest.fixture
def start(tmp_path):
    runs = []

    def begin(*extra: str) -> RayRun:
        runs.append(RayRun(tmp_path / "run", *extra))
        return runs[-1]

    yield begin
    for one in runs:
        if one.process.poll() is None:
            one.kill()


@pytest.mark.parametrize("from_terminal", [False, True], ids=["SIGTERM", "ctrl-c in a terminal"])
def test_a_signal_ends_in_a_checkpoint_within_the_budget_and_without_orphans(start, from_terminal):
    """A terminal sends its SIGINT to every process of the group, Ray's among them."""
    one = start()
    one.wait_for(one.checkpoints)
    if from_terminal:
        os.killpg(one.process.pid, signal.SIGINT)
    else:
        one.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert one.end() == EXIT_RESUMABLE, one.log.read_text()
    assert time.monotonic() - began < 120.0 + ORPHAN_LIMIT_S
    assert one.checkpoints()[-1]["reason"] == "stopped"
    assert newest(one.folder)["reason"] == "stopped"
    assert "Traceback" not in one.log.read_text()


def test_a_second_signal_leaves_at_once_with_the_checkpoint_before_intact(start):
    one = start()
    one.wait_for(one.checkpoints)
    one.process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    one.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    while one.process.poll() is None:
        assert time.monotonic() - began < 10.0
        one.look()
        time.sleep(0.01)
    assert one.end() == EXIT_INTERRUPTED, one.log.read_text()
    assert newest(one.folder)["progress"]["env_steps"] >= 100


def test_a_signal_while_ray_starts_leaves_nothing_behind(start):
    one = start()
    one.wait_for(lambda: len(one.seen) > 5)
    one.process.send_signal(signal.SIGTERM)
    assert one.end() == EXIT_INTERRUPTED, one.log.read_text()
    assert not (one.folder / "checkpoints").exists()
    assert "Traceback" not in one.log.read_text()


def test_a_killed_driver_leaves_no_orphans_and_a_checkpoint(start):
    one = start()
    one.wait_for(one.checkpoints)
    one.process.kill()
    assert one.end(AGENTS_LIMIT_S) == -signal.SIGKILL
    assert newest(one.folder)["progress"]["env_steps"] >= 100


def test_a_killed_replay_ends_the_run_with_the_checkpoint_before(start):
    """The only shard there is: what it held is in the checkpoint, and nowhere else."""
    one = start()
    one.wait_for(lambda: one.checkpoints() and one.pid("replay-0"))
    os.kill(one.pid("replay-0"), signal.SIGKILL)
    assert one.end() == EXIT_FAILED
    text = one.log.read_text()
    assert "can't go on without its replay" in text and "no checkpoint was made" in text
    assert newest(one.folder)["reason"] == "periodic"


def test_a_stop_that_can_not_be_saved_in_its_budget_is_a_failure_without_orphans(start):
    """The replay process is frozen: it answers nothing, and no SIGTERM ends it."""
    one = start("--control.stop-budget-s", "8")
    one.wait_for(lambda: one.checkpoints() and one.pid("replay-0"))
    os.kill(one.pid("replay-0"), signal.SIGSTOP)
    one.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert one.end() == EXIT_FAILED
    assert time.monotonic() - began < 8.0 + 2 * ORPHAN_LIMIT_S
    assert "control.stop_budget_s" in one.log.read_text()
    assert newest(one.folder)["reason"] == "periodic"

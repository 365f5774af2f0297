"""Ends that are no ends: signals, the clock, exceptions, memory; what is saved and what is left."""

import contextlib
import json
import os
import random
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
AGENTS_LIMIT_S = 150.0  # of Ray's agents, which look for a lost head node for a minute
CHECKPOINT_EVERY = 100  # env steps, of the Ray runs
OVERSHOOT = 64  # env steps of two calls, which may be under way when a checkpoint becomes due
CARTPOLE = shlex.split(
    """--preset cartpole --device cpu --simulations 4 --acting.segment-length 10
    --acting.collect-steps 8 --replay.min-positions 40 --learner.batch-size 16
    --limiter.samples-per-insert 6 --evaluation.every-env-steps 100000 --evaluation.max-steps 20
    --evaluation.final-episodes 1 --control.updates-per-call 2"""
)
SERIAL = [*CARTPOLE, "--runtime", "serial", "--control.checkpoint-every-env-steps", "64"]


VARIABLES = {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}


def lines(path: Path) -> list[dict]:
    """Whole ones: the last may be half written."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def events(folder: Path, kind: str) -> list[dict]:
    return [e for e in lines(folder / "events.jsonl") if e["event"] == kind]


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
#
# Runs of one folder, in the order of the tests: each goes on from what the end before it left.


class RayRun:
    """`train.py` in a process of its own; remembers every process that ever ran below it."""

    def __init__(self, folder: Path, *extra: str) -> None:
        self.folder = folder
        self.log = folder.with_suffix(".log")
        self._n_checkpoints = len(events(folder, "checkpoint"))
        self._left = newest(folder)["progress"]["env_steps"] if self._n_checkpoints else None
        self._n_logged = self.log.stat().st_size if self.log.exists() else 0
        self._began = time.time()
        command = [sys.executable, "launch/train.py", *CARTPOLE, "--run-dir", str(folder)]
        limits = ["--control.checkpoint-every-env-steps", str(CHECKPOINT_EVERY)]
        limits += ["--total-env-steps", "1000000", "--control.log-period-s", "1"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *limits, *extra],
                cwd=ROOT,
                env=os.environ | VARIABLES,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.seen: set[psutil.Process] = set()

    def look(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.seen.update(psutil.Process(self.process.pid).children(recursive=True))

    def wait_for(self, condition, what: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            self.look()
            if condition():
                return
            assert self.process.poll() is None, f"ended while waiting for {what}: {self.output()}"
            time.sleep(0.1)
        pytest.fail(f"waited {LIMIT_S} s for {what}:\n{self.output()}")

    def wait_until_at_work(self) -> None:
        """A checkpoint of its own is there. If a run of this folder ended before, this one has
        gone on from what that one left.
        """
        self.wait_for(lambda: self.checkpoints() and self.pid("replay-0"), "a checkpoint")
        resumed = [e["env_steps"] for e in self.events("resumed")]
        assert resumed == ([] if self._left is None else [self._left]), "where it goes on from"

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

    def output(self) -> str:
        """Of this run, not of those before it."""
        return self.log.read_bytes()[self._n_logged :].decode()

    def events(self, kind: str) -> list[dict]:
        """Of this run."""
        return [e for e in events(self.folder, kind) if e["timestamp"] > self._began]

    def checkpoints(self) -> list[dict]:
        return self.events("checkpoint")

    def pid(self, child: str) -> int:
        """0 until the monitor has seen the child; a checkpoint may come before."""
        beats = lines(self.folder / "heartbeat.jsonl")
        if not beats or beats[-1]["timestamp"] < self._began:
            return 0
        return beats[-1]["processes"].get(child, {}).get("pid") or 0

    def lost(self) -> int:
        """Env steps that the newest checkpoint does not have, of those in the last record."""
        last = lines(self.folder / "metrics.jsonl")[-1]["global_step"]
        return last - newest(self.folder)["progress"]["env_steps"]


class Runs:
    """The runs of one folder; at most one at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.newest: RayRun | None = None

    def start(self, *extra: str) -> RayRun:
        self.newest = RayRun(self._folder, *extra)
        return self.newest

    def at_work(self) -> RayRun:
        """The one that the test before left at work, or another."""
        if self.newest is None or self.newest.process.poll() is not None:
            self.start().wait_until_at_work()
        return self.newest

    def kill(self) -> None:
        if self.newest is not None and self.newest.process.poll() is None:
            self.newest.kill()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    found = Runs(tmp_path_factory.mktemp("ray") / "run")
    yield found
    found.kill()


@pytest.fixture
def start(tmp_path):
    runs = Runs(tmp_path / "run")
    yield runs.start
    runs.kill()


def test_a_second_signal_leaves_at_once_with_the_checkpoint_before_intact(runs):
    one = runs.at_work()
    one.process.send_signal(signal.SIGINT)
    one.wait_for(lambda: "a second signal leaves at once" in one.output(), "the first to be heard")
    one.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    while one.process.poll() is None:
        assert time.monotonic() - began < 10.0
        one.look()
        time.sleep(0.01)
    assert one.end() == EXIT_INTERRUPTED, one.output()
    assert newest(one.folder)["progress"]["env_steps"] >= 100


@pytest.mark.fault(child="driver", lost="env steps and updates since the last checkpoint")
def test_a_killed_driver_leaves_no_orphans_and_loses_what_came_since_the_checkpoint(
    runs, fault_seed
):
    one = runs.at_work()
    time.sleep(random.Random(fault_seed).uniform(0.0, 3.0))
    one.look()
    one.process.kill()
    one.process.wait()
    lost = one.lost()
    source = str(CheckpointStore(one.folder / "checkpoints", keep=2).newest())  # maybe not told of
    print(f"{lost} env steps lost")
    assert lost <= CHECKPOINT_EVERY + OVERSHOOT
    successor = runs.start()
    successor.wait_until_at_work()
    (resumed,) = successor.events("resumed")
    assert resumed["source"] == source
    assert one.end(AGENTS_LIMIT_S) == -signal.SIGKILL
    last = lines(one.folder / "metrics.jsonl")[-1]
    assert last["replay_duplicate_total"] == 0


@pytest.mark.fault(child="replay, the only one", lost="what came in since the last checkpoint")
def test_a_killed_replay_ends_the_run_and_the_same_command_goes_on(runs, fault_seed):
    """The only shard there is: what it held is in the checkpoint, and nowhere else."""
    one = runs.at_work()
    time.sleep(random.Random(fault_seed).uniform(0.0, 1.0))
    os.kill(one.pid("replay-0"), signal.SIGKILL)
    assert one.end() == EXIT_FAILED
    text = one.output()
    # Whoever notices first says so: the controller, or the learner that draws its batches there.
    assert "can't go on without its replay" in text or "the replay actor is gone" in text
    assert "no checkpoint was made" in text
    assert "the same command goes on from the last checkpoint" in text
    assert newest(one.folder)["reason"] == "periodic"
    assert one.lost() <= CHECKPOINT_EVERY + OVERSHOOT
    runs.at_work()


def test_ctrl_c_in_a_terminal_ends_in_a_checkpoint_within_the_budget_and_without_orphans(runs):
    """A terminal sends its SIGINT to every process of the group, Ray's among them."""
    one = runs.at_work()
    os.killpg(one.process.pid, signal.SIGINT)
    began = time.monotonic()
    assert one.end() == EXIT_RESUMABLE, one.output()
    assert time.monotonic() - began < 120.0 + ORPHAN_LIMIT_S
    assert one.checkpoints()[-1]["reason"] == "stopped"
    assert newest(one.folder)["reason"] == "stopped"
    assert "Traceback" not in one.output()


def test_a_stop_that_can_not_be_saved_in_its_budget_is_a_failure_without_orphans(runs):
    """The replay process is frozen: it answers nothing, and no SIGTERM ends it."""
    one = runs.start("--control.stop-budget-s", "4")
    one.wait_until_at_work()
    os.kill(one.pid("replay-0"), signal.SIGSTOP)
    one.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert one.end() == EXIT_FAILED
    assert time.monotonic() - began < 4.0 + 2 * ORPHAN_LIMIT_S
    assert "control.stop_budget_s" in one.output()
    assert newest(one.folder)["reason"] == "periodic"


def test_a_signal_while_ray_starts_leaves_nothing_behind(start):
    one = start()
    one.wait_for(lambda: len(one.seen) > 5, "some processes")
    one.process.send_signal(signal.SIGTERM)
    assert one.end() == EXIT_INTERRUPTED, one.output()
    assert not (one.folder / "checkpoints").exists()
    assert "Traceback" not in one.output()

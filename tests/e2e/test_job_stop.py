"""`ray job stop` on a real head: a checkpoint, no actor left, and the next job goes on."""

import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.util.state import list_actors

from launch.control.checkpoint import CheckpointStore, verify

ROOT = Path(__file__).resolve().parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
LIMIT_S = 240.0
STOP_WAIT_S = "90"
CARTPOLE = shlex.split(
    """--preset cartpole --device cpu --simulations 4 --acting.num-actors 1
    --acting.segment-length 10 --acting.collect-steps 8 --replay.min-positions 40
    --learner.batch-size 16 --limiter.samples-per-insert 6 --evaluation.every-env-steps 1000000
    --total-env-steps 1000000 --control.log-period-s 1 --address auto"""
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def head() -> Iterator[str]:
    """Address of the job server of a Ray head of its own."""
    variables = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    variables.pop("RAY_ADDRESS", None)
    port = free_port()
    # Sockets of Ray lie in this folder, and their paths must be short.
    with tempfile.TemporaryDirectory(prefix="wz", dir="/tmp") as folder:
        command = [*RAY, "start", "--head", "--port", str(free_port()), "--num-cpus", "6"]
        command += ["--dashboard-port", str(port), "--dashboard-host", "127.0.0.1"]
        command += ["--object-store-memory", "200000000", "--temp-dir", folder]
        # Its usual port may be another Ray's on this machine, and then no job is taken.
        command += ["--dashboard-agent-listen-port", str(free_port())]
        subprocess.run(
            [*command, "--disable-usage-stats"],
            env=variables,
            check=True,
            capture_output=True,
            timeout=LIMIT_S,
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            for process in processes_with(folder):
                process.kill()


def processes_with(word: str) -> list[psutil.Process]:
    """Of the head, by the folder that all their command lines name."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(word in part for part in process.info["cmdline"] or []):
            found.append(process)
    return found


def job(head: str, *words: str) -> str:
    """Output of a `ray job` command."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        done = subprocess.run(
            [*RAY, "job", words[0], "--address", head, *words[1:]],
            env=os.environ | {"RAY_AUTH_MODE": "disabled"},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        # A new head takes jobs some seconds after it says that it has started.
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def submit(head: str, name: str, run_dir: Path) -> None:
    runtime_env = {
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": STOP_WAIT_S, "PYTHONPATH": str(ROOT)},
    }
    command = [sys.executable, str(ROOT / "launch" / "train.py"), *CARTPOLE]
    job(
        head,
        "submit",
        *("--submission-id", name, "--no-wait"),
        *("--runtime-env-json", json.dumps(runtime_env)),
        "--",
        *(*command, "--run-dir", str(run_dir)),
    )


def wait_until(is_so, what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < deadline, f"waited {LIMIT_S:.0f} s for {what}"
        time.sleep(0.5)


def updates(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(json.loads(lines[-1]).get("update", 0)) if lines else 0


def stop(head: str, name: str, run_dir: Path) -> dict:
    """The stopped run's counters; its actors must be gone."""
    job(head, "stop", name)  # waits for the job to end
    status = job(head, "status", name)
    assert "was stopped" in status, status + job(head, "logs", name)[-3000:]
    wait_until(lambda: not actors(head), "the actors to end")
    newest = CheckpointStore(run_dir / "checkpoints", keep=2).newest()
    assert newest is not None, job(head, "logs", name)[-3000:]
    return verify(newest)


def actors(head: str) -> list[dict]:
    """Those of the head that live."""
    return list_actors(
        address=head, filters=[("state", "=", "ALIVE")], raise_on_missing_output=False
    )


def test_a_stopped_job_is_saved_and_the_next_one_goes_on(head, tmp_path):
    run_dir = tmp_path / "run"
    submit(head, "first", run_dir)
    wait_until(lambda: updates(run_dir) > 20, "the first job to learn")
    assert actors(head), "none is seen, so that none could be missed"
    first = stop(head, "first", run_dir)
    assert first["reason"] == "stopped"
    assert first["progress"]["updates"] > 20
    submit(head, "second", run_dir)
    wait_until(lambda: updates(run_dir) > first["progress"]["updates"] + 5, "the second to go on")
    second = stop(head, "second", run_dir)
    assert second["reason"] == "stopped"
    assert second["progress"]["env_steps"] > first["progress"]["env_steps"]
    resumed = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    (event,) = [e for e in resumed if e["event"] == "resumed"]
    assert event["env_steps"] == first["progress"]["env_steps"]

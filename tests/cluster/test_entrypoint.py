"""The command of each job: it fits its cluster, and one is executed, stopped and gone on from."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.config import parse
from launch.control.checkpoint import CheckpointStore, verify
from launch.control.resources import placement
from launch.control.shutdown import EXIT_FINISHED, EXIT_RESUMABLE
from tests.cluster.manifests import JOBS, ROOT, built, groups, one, quantity

LIMIT_S = 240.0
SMALLER = """--device cpu --simulations 4 --acting.segment-length 10 --acting.collect-steps 8
    --replay.min-positions 40 --learner.batch-size 16 --limiter.samples-per-insert 6
    --evaluation.every-env-steps 1000000 --evaluation.final-episodes 1 --evaluation.max-steps 20
    --control.log-period-s 1"""
# The hook means every driver in its container. Here it may mean this checkout's only.
ANY_DRIVER = "[^ ]*launch/train[.]py"


def entrypoint(folder: str) -> str:
    return one(built(folder), "RayJob")["spec"]["entrypoint"]


@pytest.mark.parametrize("folder", JOBS)
def test_the_cluster_holds_what_the_run_asks_for(folder: str) -> None:
    command = shlex.split(entrypoint(folder))
    assert command[:2] == ["python", "/app/launch/train.py"]
    _, config = parse(command[2:])
    needs = placement(config, "cpu" if config.device == "auto" else config.device)
    cpus = gpus = 0.0
    for name, group in groups(one(built(folder), "RayJob")["spec"]["rayClusterSpec"]).items():
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        own = group["rayStartParams"].get("num-cpus", limits["cpu"])
        cpus += quantity(own) * group.get("replicas", 1)
        gpus += quantity(limits.get("nvidia.com/gpu", "0"))
        if name == "head":
            replay_bytes = config.replay.capacity_mb * 1e6
            assert replay_bytes < 0.5 * quantity(limits["memory"]), "replay may be on the head"
    assert needs.num_cpus <= cpus and needs.num_gpus <= gpus


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[list[subprocess.Popen]]:
    """Drivers that a test starts; none outlives it."""
    started: list[subprocess.Popen] = []
    yield started
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(LIMIT_S)


def start(runs: Path, *more: str) -> subprocess.Popen:
    """The entrypoint of cpu-small as Ray's job supervisor runs it, by a shell, and smaller."""
    command = entrypoint("overlays/cpu-small/job")
    for old, new in (
        ("/app/", f"{ROOT}/"),
        ("/runs/", f"{runs}/"),
        ("--preset mario-quick", "--preset cartpole"),
        ("--num-actors 4", "--num-actors 1"),
    ):
        assert old in command, (old, command)
        command = command.replace(old, new)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    variables.pop("RAY_ADDRESS", None)
    words = " ".join([command, *SMALLER.split(), *more])
    return subprocess.Popen(
        words, shell=True, start_new_session=True, env=variables, stdout=subprocess.DEVNULL
    )


def stop_as_the_head_does() -> None:
    """The preStop hook of the head pod."""
    cluster = one(built("overlays/cpu-small/job"), "RayJob")["spec"]["rayClusterSpec"]
    hook = groups(cluster)["head"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]
    command = hook["exec"]["command"]
    assert command[:2] == ["bash", "-c"] and command[2].count(ANY_DRIVER) == 1
    script = command[2].replace(ANY_DRIVER, str(ROOT / "launch" / "train.py").replace(".", "[.]"))
    subprocess.run(["bash", "-c", script], check=True, timeout=LIMIT_S)


def updates(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()  # the last one may be half written
    return int(json.loads(lines[-1]).get("update", 0)) if lines else 0


def test_the_command_learns_is_stopped_by_the_hook_and_goes_on(
    tmp_path: Path, driver: list[subprocess.Popen]
) -> None:
    run_dir = tmp_path / "mario-quick"
    driver.append(start(tmp_path, "--total-env-steps 1000000"))
    deadline = time.monotonic() + LIMIT_S
    while updates(run_dir) < 5:
        assert driver[0].poll() is None and time.monotonic() < deadline
        time.sleep(0.5)
    stop_as_the_head_does()
    assert driver[0].wait(LIMIT_S) == EXIT_RESUMABLE, "the operator tries again"
    saved = verify(CheckpointStore(run_dir / "checkpoints", keep=2).newest())
    assert saved["reason"] == "stopped"
    # The next attempt; in one process, since how it goes on does not depend on that.
    env_steps = saved["progress"]["env_steps"]
    driver.append(start(tmp_path, f"--total-env-steps {env_steps + 40}", "--runtime serial"))
    assert driver[1].wait(LIMIT_S) == EXIT_FINISHED
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    (resumed,) = [event for event in events if event["event"] == "resumed"]
    assert resumed["env_steps"] == env_steps

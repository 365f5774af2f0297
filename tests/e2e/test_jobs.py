"""Jobs on a real Ray head that asks for a token: submitted, followed, stopped in a checkpoint, gone
on with, and nothing secret left behind."""

import contextlib
import io
import json
import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from ray._common.usage import usage_constants
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, GcsClient
from ray._raylet import Config as RayConfig
from ray.util.state import list_actors
from rich.console import Console

from launch import submit
from launch.config import ConfigError, parse
from launch.control.checkpoint import CheckpointStore, verify
from launch.control.cluster_check import check_cluster
from launch.control.cluster_look import look_at
from launch.control.preflight import preflight
from tests.e2e.artefacts import files_with

ROOT = Path(__file__).resolve().parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
LIMIT_S = 240.0
HEAD_STARTS = 3  # Ray gives an agent of a new head 15 s, which a busy machine may not have
STOP_WAIT_S = "90"
# Made here, since this file is among those that a job is sent with.
TOKEN, SECRET = secrets.token_hex(16), secrets.token_hex(16)
CARTPOLE = shlex.split(
    """--preset cartpole --device cpu --simulations 4 --acting.num-actors 1
    --acting.segment-length 10 --acting.collect-steps 8 --replay.min-positions 40
    --learner.batch-size 16 --limiter.samples-per-insert 6 --evaluation.every-env-steps 1000000
    --total-env-steps 1000000 --control.log-period-s 1"""
)


@dataclass
class Head:
    """address: of the job server. gcs: host:port. folder: of all that Ray writes."""

    address: str
    gcs: str
    folder: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Sockets of Ray lie in this folder, and their paths must be short.
    with (
        tempfile.TemporaryDirectory(prefix="wz", dir="/tmp") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        (home := Path(folder) / "home").mkdir()
        (token_file := home / "token").write_text(TOKEN)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token_file))
        patch.delenv("RAY_ADDRESS", raising=False)
        RayConfig.initialize("")  # this process may have used another mode before
        address, gcs_port = f"http://127.0.0.1:{free_port()}", free_port()
        try:
            start_head(Path(folder), address, gcs_port, home)
            yield Head(address, f"127.0.0.1:{gcs_port}", Path(folder))
        finally:
            end_processes_with(folder)
            patch.setenv("RAY_AUTH_MODE", "disabled")  # said, since Ray keeps what is not
            RayConfig.initialize("")
            AuthenticationTokenLoader.instance().reset_cache()


def start_head(folder: Path, address: str, gcs_port: int, home: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # a job calls `python`
    command = [*RAY, "start", "--head", "--port", str(gcs_port), "--num-cpus", "6"]
    command += ["--dashboard-port", address.rpartition(":")[2], "--dashboard-host", "127.0.0.1"]
    command += ["--object-store-memory", "200000000", "--temp-dir", str(folder / "ray")]
    for _ in range(HEAD_STARTS):
        # Their usual ports may be another Ray's on this machine.
        ports = ["--dashboard-agent-listen-port", str(free_port())]
        ports += ["--ray-client-server-port", str(free_port())]
        done = subprocess.run(
            [*command, *ports, "--disable-usage-stats"],
            env=os.environ | {"HOME": str(home), "PATH": path},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        if done.returncode == 0:
            return
        end_processes_with(str(folder))
    pytest.fail(f"no head was started:\n{done.stdout}{done.stderr}")


def end_processes_with(word: str) -> None:
    """Of the head, by the folder that all their command lines name; they write there till then."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(word in part for part in process.info["cmdline"] or []):
            process.kill()
            found.append(process)
    psutil.wait_procs(found, timeout=30)


def ray_job(head: Head, *words: str) -> str:
    """Output of a `ray job` command."""
    done = subprocess.run(
        [*RAY, "job", words[0], "--address", head.address, *words[1:]],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_until(is_so, what: str):
    deadline = time.monotonic() + LIMIT_S
    while not (found := is_so()):
        assert time.monotonic() < deadline, f"waited {LIMIT_S:.0f} s for {what}"
        time.sleep(0.5)
    return found


def updates(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()  # the last one may be half written
    return int(json.loads(lines[-1]).get("update", 0)) if lines else 0


def newest(head: Head, run_dir: Path) -> dict:
    """The stopped run's counters; its actors must be gone."""
    wait_until(lambda: not actors(head), "the actors to end")
    checkpoint = CheckpointStore(run_dir / "checkpoints", keep=2).newest()
    assert checkpoint is not None
    return verify(checkpoint)


def actors(head: Head) -> list[dict]:
    """Those of the head that live."""
    return list_actors(
        address=head.address, filters=[("state", "=", "ALIVE")], raise_on_missing_output=False
    )


def test_a_stopped_job_is_saved_and_the_next_one_goes_on(head, tmp_path, capsys):
    """The first is sent and stopped by submit.py, the second by Ray's own commands."""
    run_dir, log = tmp_path / "run", tmp_path / "log"
    first = submitted_and_stopped(head, run_dir, log, capsys)
    assert first["reason"] == "stopped"
    assert first["progress"]["updates"] > 20

    variables = {"RAY_JOB_STOP_WAIT_TIME_S": STOP_WAIT_S, "PYTHONPATH": str(ROOT)}
    command = ["python", str(ROOT / "launch" / "train.py"), *CARTPOLE, "--run-dir", str(run_dir)]
    runtime_env = json.dumps({"env_vars": variables})
    options = ["--submission-id", "plain", "--no-wait", "--runtime-env-json", runtime_env]
    ray_job(head, "submit", *options, "--", *command)
    wait_until(lambda: updates(run_dir) > first["progress"]["updates"] + 5, "the second to go on")
    ray_job(head, "stop", "plain")
    wait_until(lambda: "RUNNING" not in ray_job(head, "status", "plain"), "the job to end")
    assert "was stopped" in ray_job(head, "status", "plain"), ray_job(head, "logs", "plain")
    second = newest(head, run_dir)
    assert second["reason"] == "stopped"
    assert second["progress"]["env_steps"] > first["progress"]["env_steps"]
    resumed = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    (event,) = [e for e in resumed if e["event"] == "resumed"]
    assert event["env_steps"] == first["progress"]["env_steps"]

    artefacts = [run_dir, log, head.folder / "ray"]
    assert files_with("WARPZONE_SECRETS", artefacts), "so Ray does write variables to its logs"
    assert not files_with(SECRET, artefacts)
    assert not files_with(TOKEN, artefacts)


def submitted_and_stopped(head: Head, run_dir: Path, log: Path, capsys) -> dict:
    """The checkpoint's counters. Whoever followed the job gets its exit code."""
    command = [sys.executable, str(ROOT / "launch" / "submit.py"), "--address", head.address]
    follower = subprocess.Popen(
        [*command, "--secret", "PLANTED", "--", *CARTPOLE, "--run-dir", str(run_dir)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PLANTED": SECRET},
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        found = wait_until(
            lambda: re.search(r"stop (\S+) --address", log.read_text()), "the job to be sent"
        )
        name = found.group(1)
        wait_until(lambda: updates(run_dir) > 20, "the first job to learn")
        assert actors(head), "none is seen, so that none could be missed"
        capsys.readouterr()
        assert submit.main(["stop", name, "--address", head.address]) == 0, log.read_text()
        assert "ended with code 75" in capsys.readouterr().out
        assert follower.wait(timeout=LIMIT_S) == 75, log.read_text()
    finally:
        follower.kill()
    shown = log.read_text()
    assert "[train] env steps" in shown
    assert "[job] secrets: PLANTED\n" in shown
    assert shown.count("[job] exit code 75") == 1
    return newest(head, run_dir)


def refused(capsys, *words: str) -> str:
    """The message, one line."""
    assert submit.main(list(words)) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1, text
    return text


def test_what_a_job_server_refuses_is_told_in_one_line(head, capsys, monkeypatch, tmp_path):
    place = ["--address", head.address]
    assert "has no job 'nope'" in refused(capsys, "status", "nope", *place)
    assert "has no job 'nope'" in refused(capsys, "stop", "nope", *place)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    assert "refuses our token" in refused(capsys, "logs", "nope", *place)
    assert "refuses our token" in refused(capsys, *place, "--", *CARTPOLE)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    assert f"{tmp_path / 'none'} can't be read" in refused(capsys, "logs", "nope", *place)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "asks for a token, and there is none" in refused(capsys, "logs", "nope", *place)


@contextlib.contextmanager
def another_token(monkeypatch, token: str) -> Iterator[None]:
    """Ray keeps the token that it has read."""
    with monkeypatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", token)
        AuthenticationTokenLoader.instance().reset_cache()
        yield
    AuthenticationTokenLoader.instance().reset_cache()


def test_a_run_joins_only_a_cluster_of_its_own_token_and_versions(head, monkeypatch):
    def check() -> None:
        check_cluster(head.gcs, allow_open=False, warn=pytest.fail)

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # as where nobody thought of it
    check()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    with another_token(monkeypatch, "another"), pytest.raises(ConfigError, match="refuses our"):
        check()
    gcs = GcsClient(address=head.gcs)
    key = usage_constants.CLUSTER_METADATA_KEY
    where = ray_constants.KV_NAMESPACE_CLUSTER
    before = gcs.internal_kv_get(key, namespace=where)
    for name, other in (("ray_version", "2.59.1"), ("python_version", "3.12.4")):
        changed = json.dumps(json.loads(before) | {name: other}).encode()
        gcs.internal_kv_put(key, changed, True, namespace=where)
        try:
            with pytest.raises(ConfigError, match=f"runs Ray .*{other}.* but this is Ray"):
                check()
        finally:
            gcs.internal_kv_put(key, before, True, namespace=where)
    check()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "cuda"], ["device 'cuda'", "1 node, 6 CPUs, 0 GPUs", "--device cpu"]),
        (
            ["--num-actors", "32", "--control.min-actors", "5"],
            ["32 were asked for, 4 have room", "4 env actors would fit", "min_actors is 5"],
        ),
        (["--learner.n-devices", "8", "--num-actors", "1"], ["learner", "of the 8.00 that it"]),
    ],
)
def test_what_a_cluster_can_not_hold_is_refused_before_anything_is_started(head, words, said):
    """The first two are the words of someone with a larger cluster in mind."""
    wait_until(lambda: not actors(head), "the actors of earlier tests to end")
    _, config = parse([*CARTPOLE, "--address", head.gcs, *words])
    with pytest.raises(ConfigError) as refusal:
        preflight(config, Console(file=io.StringIO()))
    assert all(part in str(refusal.value) for part in said), refusal.value
    assert not actors(head)
    ground = look_at(head.gcs)
    assert (ground.num_cpus, ground.num_gpus, ground.can_grow) == (6.0, 0.0, False)


def test_what_there_is_and_what_has_room_is_said_where_a_run_can_begin(head):
    shown = io.StringIO()
    _, config = parse([*CARTPOLE, "--address", head.gcs, "--num-actors", "9"])
    assert preflight(config, Console(file=shown))[1] == "cpu"
    text = " ".join(shown.getvalue().split())
    port = head.gcs.rpartition(":")[2]  # Ray may call this machine by another address
    assert f":{port}: 1 node, 6 CPUs, 0 GPUs [train]" in text
    assert "learner, replay and weight server together" in text
    assert "4 of 9 env actors have room, on 1 node, at most 4 each" in text
    assert "5 more need 5 CPUs" in text and "begins with what has room" in text

"""Real runs: Ray processes, the emulator with its ROM, vLLM, killed actors, signals, resume."""

import contextlib
import json
import os
import random
import secrets
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from launch.access import is_loopback
from tests.e2e.artefacts import files_with

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 420
SECRET = secrets.token_hex(16)

MARIO = shlex.split(
    """--preset mario-quick --device cpu --total-env-steps 1400 --simulations 8
    --replay.min-positions 120 --replay.capacity-mb 100 --acting.segment-length 20
    --learner.batch-size 16 --limiter.samples-per-insert 4 --learner.publish-every 10
    --evaluation.every-env-steps 500 --evaluation.n-episodes 1 --evaluation.final-episodes 1
    --evaluation.max-steps 40 --control.checkpoint-every-env-steps 600 --control.log-period-s 1
    --schedule.wm-train-freq 16 --schedule.llm-train-freq 1
    --language.publish-every 1 --prior.deadline-s 5"""
)
CARTPOLE = shlex.split(
    """--preset cartpole --device cpu --simulations 6 --acting.segment-length 10
    --acting.collect-steps 8 --replay.min-positions 40 --learner.batch-size 16
    --limiter.samples-per-insert 8 --evaluation.every-env-steps 100000
    --evaluation.final-episodes 1 --control.checkpoint-every-env-steps 200
    --control.log-period-s 1"""
)


def start(run_dir: Path, *arguments: str, **variables: str) -> subprocess.Popen:
    """A run in a process group of its own; its output goes to a file beside the run."""
    log = run_dir.with_suffix(".log").open("ab")
    return subprocess.Popen(
        [sys.executable, "launch/train.py", *arguments, "--run-dir", str(run_dir)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"} | variables,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def output(run_dir: Path) -> str:
    return run_dir.with_suffix(".log").read_text()


def events(run_dir: Path, kind: str) -> list[dict]:
    path = run_dir / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [e for e in map(json.loads, lines) if e["event"] == kind]


def pids(run_dir: Path) -> dict[str, int]:
    """Child name -> pid, from the newest heartbeat line."""
    path = run_dir / "heartbeat.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    if not lines:
        return {}
    processes = json.loads(lines[-1])["processes"]
    return {name: beat["pid"] for name, beat in processes.items() if beat["pid"]}


def wait_until(condition, process: subprocess.Popen, run_dir: Path, what: str):
    """The first true value of `condition()`; fails when the run ends or time is up before."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        assert process.poll() is None, f"run ended while waiting for {what}:\n{output(run_dir)}"
        time.sleep(0.2)
    pytest.fail(f"waited {LIMIT_S} s for {what}:\n{output(run_dir)}")


def finish(process: subprocess.Popen, run_dir: Path) -> int:
    try:
        return process.wait(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"run did not end:\n{output(run_dir)}")


def kill(pid: int, seed: int) -> None:
    """Within the next second, as the seed has it."""
    time.sleep(random.Random(seed).uniform(0.0, 1.0))
    os.kill(pid, signal.SIGKILL)


def records(run_dir: Path, since: float = 0.0) -> list[dict]:
    """Metric lines written after `since`."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["timestamp"] > since]


def only_grows(run_dir: Path, name: str) -> bool:
    values = [record[name] for record in records(run_dir)]
    return values == sorted(values)


def children_alive(known: dict[str, int]) -> list[str]:
    return [
        name
        for name, pid in known.items()
        if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]


def last_metrics(run_dir: Path) -> dict:
    return json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])


def test_the_main_job_survives_a_killed_env_actor(tmp_path, fault_seed):
    """Every part at work on real parts; one env actor is killed on the way.

    Meanwhile no other machine reaches any of them, and a secret that they all have stays theirs.
    """
    run_dir = tmp_path / "mario"
    process = start(run_dir, *MARIO, AWS_SECRET_ACCESS_KEY=SECRET)
    known = wait_until(
        lambda: (p := pids(run_dir)) and "env-actor-1" in p and last_steps(run_dir) > 100 and p,
        process,
        run_dir,
        "env actors at work",
    )
    doors = listening(process.pid)
    assert len(doors) > 10
    assert [door for door in doors if not is_loopback(door.rpartition(" ")[2])] == []
    session = ray_session(process.pid)
    kill(known["env-actor-1"], fault_seed)
    assert finish(process, run_dir) == 0, output(run_dir)
    assert (session / "logs").is_dir()
    assert not files_with(SECRET, [run_dir, run_dir.with_suffix(".log"), session])

    failed = events(run_dir, "child_failed")
    assert [e["child"] for e in failed] == ["env-actor-1"], failed
    metrics = last_metrics(run_dir)
    assert metrics["global_step"] >= 1400
    assert metrics["update"] >= 200
    assert metrics["restarts"] == 1
    assert metrics["replay_duplicate_total"] == 0
    assert metrics["replay_rejected_total"] == 0
    assert metrics["weight_version"] > 0
    assert metrics["prior_sent_total"] > 0
    assert metrics["prior_fallback_rate"] < 1.0  # vLLM answered some of the questions
    published = events(run_dir, "adapter_published")
    assert published
    assert all(e["accepted"] for e in published)
    versions = [e["weight_version"] for e in events(run_dir, "evaluation")]
    assert versions == sorted(versions)
    assert versions[-1] > 0
    video = max((run_dir / "videos").glob("*.mp4"))
    assert video.read_bytes()[4:8] == b"ftyp"
    assert len(events(run_dir, "checkpoint")) >= 2
    assert json.loads((run_dir / "live.json").read_text())["prompt"].startswith("world 1-1")
    assert not children_alive(known)
    text = output(run_dir)
    assert "env steps" in text
    assert "Traceback" not in text


def below(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def listening(pid: int) -> list[str]:
    """Name and address of each socket on which this process or one below it waits for others."""
    found = []
    for process in below(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in process.net_connections():
                if each.status == psutil.CONN_LISTEN:
                    found.append(f"{process.name()} {each.laddr.ip.removeprefix('::ffff:')}")
    return found


def ray_session(pid: int) -> Path:
    """Where the Ray below this process writes."""
    for process in below(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            for word in process.cmdline():
                if word.startswith("--log_dir="):
                    return Path(word.partition("=")[2]).parent
    raise AssertionError("no process of Ray names its session")


def last_steps(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["global_step"] if lines else 0


def test_ctrl_c_ends_in_a_checkpoint_and_the_same_command_goes_on(tmp_path):
    run_dir = tmp_path / "cartpole"
    process = start(run_dir, *CARTPOLE, "--total-env-steps", "100000")
    wait_until(lambda: last_steps(run_dir) > 250, process, run_dir, "some env steps")
    known = pids(run_dir)
    os.kill(process.pid, signal.SIGINT)
    assert finish(process, run_dir) == 75, output(run_dir)
    assert not children_alive(known)
    stopped = last_metrics(run_dir)
    assert events(run_dir, "checkpoint")[-1]["reason"] == "stopped"

    total = str(stopped["global_step"] + 150)
    process = start(run_dir, *CARTPOLE, "--total-env-steps", total)
    assert finish(process, run_dir) == 0, output(run_dir)
    resumed = events(run_dir, "resumed")
    assert resumed[-1]["env_steps"] == stopped["global_step"]
    metrics = last_metrics(run_dir)
    assert metrics["global_step"] >= int(total)
    assert metrics["update"] > stopped["update"]
    assert metrics["weight_version"] >= stopped["weight_version"]
    assert metrics["replay_push_total"] > stopped["replay_push_total"]
    assert metrics["replay_duplicate_total"] == 0
    steps = [
        json.loads(line)["global_step"]
        for line in (run_dir / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(steps)


def shard_bytes(run_dir: Path) -> list[int]:
    """What every shard held at the newest checkpoint, by the controller's book."""
    folder = run_dir / "checkpoints"
    latest = folder / (folder / "LATEST").read_text().strip()
    assert sorted(p.name for p in (latest / "replay").iterdir()) == ["shard-0", "shard-1"]
    book = json.loads((latest / "counters.json").read_text())["replay"]
    return [account["held"] for account in book["accounts"]]


@pytest.mark.fault(child="replay shard, one of several", lost="what it held")
def test_replay_goes_on_without_a_killed_shard_and_takes_it_back(tmp_path, fault_seed):
    run_dir = tmp_path / "shards"
    shards = ["--replay.num-shards", "2", "--total-env-steps", "100000"]
    process = start(run_dir, *CARTPOLE, *shards)
    known = wait_until(
        lambda: (p := pids(run_dir)) and {"replay-0", "replay-1", "learner"} <= set(p) and p,
        process,
        run_dir,
        "both shards",
    )
    wait_until(lambda: last_metrics_of(run_dir, "update") > 40, process, run_dir, "updates")
    kill(known["replay-1"], fault_seed)
    wait_until(lambda: events(run_dir, "child_failed"), process, run_dir, "the failure")
    held = last_metrics(run_dir)["replay_positions"]
    wait_until(lambda: events(run_dir, "replay_shard_ready"), process, run_dir, "its return")
    before = last_metrics_of(run_dir, "update")
    wait_until(
        lambda: (
            last_metrics_of(run_dir, "update") > before + 300
            and last_metrics_of(run_dir, "replay_shards_alive") == 2
        ),
        process,
        run_dir,
        "updates with both shards",
    )
    os.kill(process.pid, signal.SIGINT)
    assert finish(process, run_dir) == 75, output(run_dir)

    assert {e["child"] for e in events(run_dir, "child_failed")} == {"replay-1"}
    # Shards hold the same number of bytes, so the other has about half of all positions.
    failed_at = events(run_dir, "child_failed")[0]["timestamp"]
    assert min(r["replay_positions"] for r in records(run_dir, failed_at)) > 0.4 * held
    metrics = last_metrics(run_dir)
    assert metrics["replay_shards_lost"] == metrics["restarts"] >= 1
    assert metrics["replay_duplicate_total"] == 0
    held = shard_bytes(run_dir)
    assert min(held) > 0.9 * max(held), held  # the successor got all until it had caught up
    text = output(run_dir)
    assert "Traceback" not in text and "constructor arguments" not in text

    steps = str(metrics["global_step"] + 100)
    process = start(run_dir, *CARTPOLE, "--replay.num-shards", "2", "--total-env-steps", steps)
    assert finish(process, run_dir) == 0, output(run_dir)
    assert last_metrics(run_dir)["replay_push_total"] > metrics["replay_push_total"]


def last_metrics_of(run_dir: Path, name: str) -> float:
    """0 while there is no record, or none with this figure."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return (json.loads(lines[-1]).get(name) or 0) if lines else 0


@pytest.mark.fault(child="replay, the only one", lost="what came in since the last checkpoint")
def test_the_last_shard_takes_the_run_with_it(tmp_path, fault_seed):
    run_dir = tmp_path / "alone"
    process = start(run_dir, *CARTPOLE, "--total-env-steps", "100000")
    known = wait_until(
        lambda: (p := pids(run_dir)) and {"replay-0"} <= set(p) and p, process, run_dir, "replay"
    )
    wait_until(lambda: events(run_dir, "checkpoint"), process, run_dir, "a checkpoint")
    kill(known["replay-0"], fault_seed)
    assert finish(process, run_dir) == 1, output(run_dir)
    assert "the same command goes on from the last checkpoint" in output(run_dir)
    newest = events(run_dir, "checkpoint")[-1]["path"]
    steps = int(newest.rpartition("step-")[2].split("-")[0])
    # One is due every 200 steps; two calls of 8 steps and more may be under way then.
    assert last_steps(run_dir) - steps <= 200 + 32
    process = start(run_dir, *CARTPOLE, "--total-env-steps", str(last_steps(run_dir) + 50))
    assert finish(process, run_dir) == 0, output(run_dir)
    assert events(run_dir, "resumed")[-1]["env_steps"] == steps


def versions(run_dir: Path) -> list[float]:
    """Newest weight version that acted, of every record."""
    path = run_dir / "metrics.jsonl"
    return [json.loads(line)["weight_version"] for line in path.read_text().splitlines()]


@pytest.mark.fault(child="learner", lost="updates since the newest checkpoint")
@pytest.mark.fault(child="weight server", lost="nothing")
def test_a_killed_learner_goes_on_from_the_checkpoint_and_weights_are_published_again(
    tmp_path, fault_seed
):
    run_dir = tmp_path / "learner"
    process = start(run_dir, *CARTPOLE, "--total-env-steps", "100000")
    known = wait_until(
        lambda: (p := pids(run_dir)) and {"learner", "weight-server"} <= set(p) and p,
        process,
        run_dir,
        "pids",
    )
    wait_until(lambda: events(run_dir, "checkpoint"), process, run_dir, "a checkpoint")
    for name in ("learner", "weight-server"):
        kill(known[name], fault_seed)
        wait_until(
            lambda name=name: pids(run_dir).get(name) not in (None, known[name]),
            process,
            run_dir,
            f"another {name}",
        )
        acted = versions(run_dir)[-1]
        wait_until(
            lambda acted=acted: versions(run_dir)[-1] > acted + 50, process, run_dir, "new weights"
        )
    os.kill(process.pid, signal.SIGINT)
    assert finish(process, run_dir) == 75, output(run_dir)
    assert {e["child"] for e in events(run_dir, "child_failed")} <= {"learner", "weight-server"}
    (replaced,) = events(run_dir, "learner_replaced")
    made = [e for e in events(run_dir, "checkpoint") if e["timestamp"] < replaced["timestamp"]]
    assert replaced["source"] == made[-1]["path"]
    assert only_grows(run_dir, "global_step") and only_grows(run_dir, "update")
    assert versions(run_dir) == sorted(versions(run_dir)), "acting never turns back"
    assert last_metrics(run_dir)["skipped_total"] == 0
    assert not children_alive(known)


def shares(run_dir: Path) -> list[float]:
    """Of the samples of each record, how many had targets searched again."""
    path = run_dir / "metrics.jsonl"
    lines = map(json.loads, path.read_text().splitlines() if path.exists() else [])
    return [r["reanalysed_share"] for r in lines if r.get("reanalysed_share") is not None]


@pytest.mark.fault(child="reanalyser", lost="the segments it was working on")
def test_reanalysis_goes_on_when_its_process_is_killed(tmp_path, fault_seed):
    run_dir = tmp_path / "reanalysis"
    reanalysis = ["--reanalysis.share", "0.5", "--total-env-steps", "100000"]
    process = start(run_dir, *CARTPOLE, *reanalysis)
    wait_until(lambda: max(shares(run_dir), default=0) > 0.4, process, run_dir, "the share")
    known = wait_until(
        lambda: (p := pids(run_dir)) and "reanalyser" in p and p, process, run_dir, "its pid"
    )
    kill(known["reanalyser"], fault_seed)
    wait_until(lambda: events(run_dir, "child_failed"), process, run_dir, "the failure")
    wait_until(
        lambda: pids(run_dir).get("reanalyser") not in (None, known["reanalyser"]),
        process,
        run_dir,
        "the next one",
    )
    n_segments = last_metrics(run_dir)["reanalysis_segments_total"]
    wait_until(
        lambda: last_metrics(run_dir)["reanalysis_segments_total"] > n_segments,
        process,
        run_dir,
        "more segments",
    )
    n_seen = len(shares(run_dir))
    wait_until(
        lambda: any(s > 0.4 for s in shares(run_dir)[n_seen:]), process, run_dir, "the share again"
    )
    os.kill(process.pid, signal.SIGINT)
    assert finish(process, run_dir) == 75, output(run_dir)
    assert [e["child"] for e in events(run_dir, "child_failed")] == ["reanalyser"]
    metrics = last_metrics(run_dir)
    assert metrics["restarts"] == 1
    assert metrics["replay_patch_applied_total"] > 0
    assert metrics["replay_patch_invalid_total"] == 0
    assert not children_alive(known)
    assert "Traceback" not in output(run_dir)


@pytest.mark.fault(child="search service", lost="nothing")
def test_a_served_search_survives_its_own_death_and_an_env_actors(tmp_path, fault_seed):
    """Contexts that die with the service are brought back by those who play in them."""
    run_dir = tmp_path / "served"
    served = ["--search.mode", "served", "--num-actors", "2", "--total-env-steps", "3000"]
    process = start(run_dir, *CARTPOLE, *served)
    known = wait_until(
        lambda: (p := pids(run_dir)) and {"search", "env-actor-1"} <= set(p) and p,
        process,
        run_dir,
        "the search service",
    )
    wait_until(lambda: last_steps(run_dir) > 200, process, run_dir, "some env steps")
    kill(known["env-actor-1"], fault_seed)
    wait_until(lambda: events(run_dir, "child_failed"), process, run_dir, "the failure")
    n_steps = last_steps(run_dir)
    wait_until(lambda: last_steps(run_dir) > n_steps + 200, process, run_dir, "more env steps")
    kill(known["search"], fault_seed)
    n_steps = last_steps(run_dir)
    wait_until(lambda: last_steps(run_dir) > n_steps + 300, process, run_dir, "env steps after it")
    assert finish(process, run_dir) == 0, output(run_dir)

    failed = {e["child"] for e in events(run_dir, "child_failed")}
    assert "env-actor-1" in failed and failed <= {"env-actor-1", "search"}
    assert only_grows(run_dir, "global_step") and only_grows(run_dir, "update")
    # The killed env actor's successor starts new episodes; the service's brings none itself.
    seen = records(run_dir)
    assert sum(r.get("search_served_restored") or 0 for r in seen) > 0
    assert max(r.get("search_served_batch_roots_mean") or 0 for r in seen) > 1
    metrics = seen[-1]
    assert metrics["global_step"] >= 3000
    assert metrics["weight_version"] > 0
    assert metrics["replay_duplicate_total"] == 0
    assert metrics["search_cache_init_hits"] is not None
    text = output(run_dir)
    assert "Traceback" not in text and "constructor arguments" not in text

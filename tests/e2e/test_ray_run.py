"""Real runs to their end: Ray processes, the emulator with its ROM, vLLM, a served search, killed
actors.
"""

import contextlib
import json
import os
import random
import secrets
import shlex
import signal
import time
from pathlib import Path

import psutil
import pytest

from launch.access import is_loopback
from launch.control.request_box import RequestDesk
from tests.chaos.real_run import RealRun
from tests.e2e.artefacts import files_with
from tests.monitoring.metrics_page import documented, undocumented

SECRET = secrets.token_hex(16)

MARIO = shlex.split(
    """--preset mario-quick --device cpu --total-env-steps 1100 --simulations 8
    --replay.min-positions 120 --replay.capacity-mb 100 --acting.segment-length 20
    --learner.batch-size 16 --limiter.samples-per-insert 4 --learner.publish-every 10
    --evaluation.every-env-steps 400 --evaluation.n-episodes 1 --evaluation.final-episodes 1
    --evaluation.max-steps 40 --control.checkpoint-every-env-steps 400 --control.log-period-s 1
    --schedule.wm-train-freq 16 --schedule.llm-train-freq 1
    --language.publish-every 1 --prior.deadline-s 5"""
)
SERVED = shlex.split(
    """--preset cartpole --device cpu --simulations 6 --acting.segment-length 10
    --acting.collect-steps 8 --replay.min-positions 40 --learner.batch-size 16
    --limiter.samples-per-insert 8 --evaluation.every-env-steps 100000
    --evaluation.final-episodes 1 --control.checkpoint-every-env-steps 200
    --control.log-period-s 1 --search.mode served --num-actors 2 --total-env-steps 2200"""
)


def kill(pid: int, seed: int) -> None:
    """Within the next second, as the seed has it."""
    time.sleep(random.Random(seed).uniform(0.0, 1.0))
    os.kill(pid, signal.SIGKILL)


def steps(run: RealRun) -> float:
    return run.metrics().get("global_step", 0)


def only_grows(run: RealRun, name: str) -> bool:
    values = run.every(name)
    return values == sorted(values)


def seen_closely(run: RealRun) -> list[dict]:
    """Environments that the run shows with their search tree."""
    shown = json.loads((run.folder / "live.json").read_text())["environments"]
    return [e for e in shown if e["tree"] is not None]


def test_the_main_job_survives_a_killed_env_actor(tmp_path, fault_seed):
    """Every part at work on real parts; one env actor is killed on the way.

    Meanwhile no other machine reaches any of them, and a secret that they all have stays theirs.
    """
    variables = {"AWS_SECRET_ACCESS_KEY": SECRET}
    run = RealRun(tmp_path / "mario", settings=MARIO, variables=variables)
    run.start()
    assert run.process is not None
    run.wait_until(lambda: "env-actor-1" in run.pids() and steps(run) > 100, "env actors at work")
    doors = listening(run.process.pid)
    assert len(doors) > 10
    assert [door for door in doors if not is_loopback(door.rpartition(" ")[2])] == []
    session = ray_session(run.process.pid)
    desk = RequestDesk(run.folder)  # as the live page's server
    asked = desk.put({"ask": "setting", "setting": "simulations", "value": 4})
    run.wait_until(lambda: desk.answer(asked) is not None, "an answer to a request")
    run.wait_until(
        lambda: desk.look(0, 1) or any(e["env"] == 1 for e in seen_closely(run)),
        "a look at one environment",
    )
    known = run.pids()
    processes = [psutil.Process(pid) for pid in known.values()]
    kill(known["env-actor-1"], fault_seed)
    assert run.finish() == 0, run.output()
    assert (session / "logs").is_dir()
    assert not files_with(SECRET, [run.folder, run.folder.with_suffix(".log"), session])

    failed = run.events("child_failed")
    assert [e["child"] for e in failed] == ["env-actor-1"], failed
    metrics = run.metrics()
    assert metrics["global_step"] >= 1100
    assert metrics["update"] >= 100
    assert metrics["restarts"] == 1
    assert metrics["replay_duplicate_total"] == 0
    assert metrics["replay_rejected_total"] == 0
    assert metrics["weight_version"] > 0
    assert metrics["prior_sent_total"] > 0
    assert metrics["prior_fallback_rate"] < 1.0  # vLLM answered some of the questions
    published = run.events("adapter_published")
    assert published
    assert all(e["accepted"] for e in published)
    versions = [e["weight_version"] for e in run.events("evaluation")]
    assert versions == sorted(versions)
    assert versions[-1] > 0
    video = max((run.folder / "videos").glob("*.mp4"))
    assert video.read_bytes()[4:8] == b"ftyp"
    assert len(run.events("checkpoint")) >= 2
    for seen in seen_closely(run):
        assert seen["prompt"].startswith("world 1-1")
        assert seen["prior"] is None or "world 1-1" in seen["llm_text"]
    (change,) = run.events("setting_changed")
    assert (change["setting"], change["before"], change["after"]) == ("simulations", 8, 4)
    assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    text = run.output()
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


@pytest.mark.fault(child="search service", lost="nothing")
def test_a_served_search_survives_its_own_death_and_an_env_actors(tmp_path, fault_seed):
    """Contexts that die with the service are brought back by those who play in them."""
    run = RealRun(tmp_path / "served", settings=SERVED)
    run.start()
    run.wait_until(
        lambda: {"search", "env-actor-1"} <= set(run.pids()) and steps(run) > 200,
        "the search service, and some env steps",
    )
    desk = RequestDesk(run.folder)
    run.wait_until(
        lambda: desk.look(1, 0) or any(e["actor"] == 1 for e in seen_closely(run)),
        "a tree of the service",
    )
    known = run.pids()
    kill(known["env-actor-1"], fault_seed)
    run.wait_until(lambda: run.events("child_failed"), "the env actor's failure")
    n_steps = steps(run)
    run.wait_until(lambda: steps(run) > n_steps + 100, "env steps after the env actor's death")
    kill(known["search"], fault_seed)
    n_steps = steps(run)
    run.wait_until(lambda: steps(run) > n_steps + 200, "env steps after the service's death")
    assert run.finish() == 0, run.output()

    failed = {e["child"] for e in run.events("child_failed")}
    assert "env-actor-1" in failed and failed <= {"env-actor-1", "search"}
    assert only_grows(run, "global_step") and only_grows(run, "update")
    # The killed env actor's successor starts new episodes; the service's brings none itself.
    assert sum(run.every("search_served_restored")) > 0
    assert max(run.every("search_served_batch_roots_mean")) > 1
    assert max(run.every("wait_percent/env_actor/search")) > 0
    assert set(run.every("time_percent/env_actor/search")) == {0.0}, "the service searches"
    metrics = run.metrics()
    written = {name for record in run.records() for name in record}
    assert not undocumented(written)
    expected = documented("search_served_") | documented("object_store_")
    assert expected <= written
    # Means over the batches since the record before; at the end there may have been none.
    means = ("batch_roots_mean", "wait_ms_mean", "overdue_share")
    assert expected - {f"search_served_{name}" for name in means} <= set(metrics)
    assert metrics["global_step"] >= 2200
    assert metrics["weight_version"] > 0
    assert metrics["replay_duplicate_total"] == 0
    assert metrics["search_cache_init_hits"] is not None
    text = run.output()
    assert "Traceback" not in text and "constructor arguments" not in text

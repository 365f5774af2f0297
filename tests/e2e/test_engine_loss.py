"""A run with two prior engines, one of which is killed, and then once too often."""

import os
import random
import shlex
import signal
import time

import pytest

from tests.chaos.real_run import EXIT_RESUMABLE
from tests.e2e.test_env_faults import faulty_run

TWO_ENGINES = shlex.split(
    """--num-actors 2 --replay.num-shards 1 --prior.enabled true --prior.backend transformers
    --prior.num-engines 2 --prior.deadline-s 5 --control.collect-deadline-s 60
    --control.max-restarts 1
    --language.enabled true
    --schedule.wm-train-freq 16 --schedule.llm-train-freq 1 --language.publish-every 1"""
)


@pytest.mark.fault(child="prior engine, one of several", lost="nothing")
@pytest.mark.fault(child="prior engine, one of several, too often", lost="nothing")
def test_a_killed_engine_leaves_the_other_serving_and_comes_back_with_the_newest(
    tmp_path, fault_seed
):
    run = faulty_run(tmp_path, [], *TWO_ENGINES)
    rng = random.Random(fault_seed)
    victim, other = rng.sample(["prior-engine-0", "prior-engine-1"], 2)

    def published(engine: str, since: float = 0.0) -> list[dict]:
        events = run.events("adapter_published")
        return [e for e in events if e["engine"] == engine and e["timestamp"] > since]

    run.start()
    run.wait_until(
        lambda: all(published(engine) for engine in (victim, other)) and victim in run.pids(),
        "adapters on both",
    )
    time.sleep(rng.uniform(0.0, 2.0))
    n_sent = run.metrics()["prior_sent_total"]
    os.kill(run.pids()[victim], signal.SIGKILL)
    run.wait_until(lambda: run.events("child_failed"), "the loss to be noticed")
    (lost,) = run.events("child_failed")
    run.wait_until(lambda: published(other, lost["timestamp"]), "an adapter on the other alone")
    run.wait_until(lambda: len(run.events("prior_engine_ready")) == 3, "its successor")
    back = run.events("prior_engine_ready")[-1]
    run.wait_until(lambda: len(published(victim, back["timestamp"])) > 1, "adapters on both again")
    run.wait_until(lambda: run.metrics()["prior_engines_ready"] == 2, "both in the figures")
    os.kill(run.pids()[victim], signal.SIGKILL)
    run.wait_until(lambda: run.events("child_quarantined"), "one failure too many")
    (out,) = run.events("child_quarantined")
    run.wait_until(lambda: published(other, out["timestamp"]), "an adapter on the one that is left")
    run.wait_until(lambda: run.metrics()["prior_engines_ready"] == 1, "one in the figures")
    assert run.stop() == EXIT_RESUMABLE, run.output()

    assert lost["child"] == back["engine"] == victim
    while_away = [e for e in published(other) if e["timestamp"] < back["timestamp"]]
    assert published(victim, back["timestamp"])[0]["version"] >= while_away[-1]["version"]
    assert all(e["accepted"] for engine in (victim, other) for e in published(engine))
    assert 1 in run.every("prior_engines_ready")
    assert run.metrics()["prior_publications_refused_total"] == 0
    assert run.metrics()["prior_sent_total"] > n_sent
    failed = run.events("child_failed")
    assert [e["child"] for e in failed] == [victim, victim], failed
    assert out["child"] == victim and not published(victim, out["timestamp"])
    assert len(run.events("prior_engine_ready")) == 3
    assert "Traceback" not in run.output()

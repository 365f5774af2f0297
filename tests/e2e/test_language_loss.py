"""One run with two prior engines: its language learner is killed, one of the engines, and that one
again, which is once too often.
"""

import os
import random
import shlex
import signal
import time

import pytest

from tests.chaos.real_run import EXIT_RESUMABLE, RealRun
from tests.e2e.test_env_faults import faulty_run

ENGINES = ("prior-engine-0", "prior-engine-1")
TWO_ENGINES = shlex.split(
    """--num-actors 2 --replay.num-shards 1 --prior.enabled true --prior.backend transformers
    --prior.num-engines 2 --prior.deadline-s 5 --control.collect-deadline-s 60
    --control.max-restarts 1
    --language.enabled true --control.checkpoint-every-env-steps 100
    --schedule.wm-train-freq 16 --schedule.llm-train-freq 1 --language.publish-every 1"""
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    run = faulty_run(tmp_path_factory.mktemp("language"), [], *TWO_ENGINES)
    yield run
    run.kill()


@pytest.fixture
def run(shared) -> RealRun:
    """With an adapter on both engines, and a checkpoint; begun anew if it has ended."""
    if not shared.is_running():
        shared.start()
    since = time.time()
    shared.wait_until(
        lambda: (
            all(published(shared, engine, since) for engine in ENGINES)
            and {"language-learner", *ENGINES} <= set(shared.pids())
            and shared.events("checkpoint")
        ),
        "an adapter on both engines, and a checkpoint",
    )
    return shared


def published(run: RealRun, engine: str, since: float) -> list[dict]:
    return [e for e in run.events("adapter_published", since) if e["engine"] == engine]


@pytest.mark.fault(child="language learner", lost="its updates since the last checkpoint")
def test_a_killed_language_learner_goes_on_from_the_checkpoint(run, fault_seed):
    began, known = time.time(), run.pids()["language-learner"]
    time.sleep(random.Random(fault_seed).uniform(0.0, 3.0))
    os.kill(known, signal.SIGKILL)
    run.wait_until(lambda: run.events("language_learner_replaced", began), "a successor")
    (replaced,) = run.events("language_learner_replaced", began)
    run.wait_until(
        lambda: all(len(published(run, e, replaced["timestamp"])) > 1 for e in ENGINES),
        "adapters of the successor",
    )
    run.wait_until(lambda: run.pids().get("language-learner") not in (None, known), "its process")
    back_at = time.time()
    run.wait_until(lambda: run.events("checkpoint", back_at), "a checkpoint with it")

    before = [e["path"] for e in run.events("checkpoint") if e["timestamp"] < replaced["timestamp"]]
    assert replaced["source"] == before[-1]
    for engine in ENGINES:
        versions = [e["version"] for e in published(run, engine, began)]
        assert versions == sorted(set(versions)), (engine, versions)
    assert all(e["accepted"] for e in run.events("adapter_published", began))
    assert [e["child"] for e in run.events("child_failed", began)] == ["language-learner"]
    assert "Traceback" not in run.output()


@pytest.mark.fault(child="prior engine, one of several", lost="nothing")
@pytest.mark.fault(child="prior engine, one of several, too often", lost="nothing")
def test_a_killed_engine_leaves_the_other_serving_and_comes_back_with_the_newest(run, fault_seed):
    rng = random.Random(fault_seed)
    victim, other = rng.sample(ENGINES, 2)
    time.sleep(rng.uniform(0.0, 2.0))
    began, n_sent = time.time(), run.metrics()["prior_sent_total"]
    os.kill(run.pids()[victim], signal.SIGKILL)
    run.wait_until(lambda: run.events("child_failed", began), "the loss to be noticed")
    (lost,) = run.events("child_failed", began)
    run.wait_until(
        lambda: published(run, other, lost["timestamp"]), "an adapter on the other alone"
    )
    run.wait_until(lambda: run.events("prior_engine_ready", began), "its successor")
    (back,) = run.events("prior_engine_ready", began)
    run.wait_until(
        lambda: len(published(run, victim, back["timestamp"])) > 1, "adapters on both again"
    )
    run.wait_until(lambda: run.metrics()["prior_engines_ready"] == 2, "both in the figures")
    os.kill(back["pid"], signal.SIGKILL)  # a heartbeat may still have the one before
    run.wait_until(lambda: run.events("child_quarantined", began), "one failure too many")
    (out,) = run.events("child_quarantined", began)
    run.wait_until(
        lambda: published(run, other, out["timestamp"]), "an adapter on the one that is left"
    )
    run.wait_until(lambda: run.metrics()["prior_engines_ready"] == 1, "one in the figures")
    assert run.stop() == EXIT_RESUMABLE, run.output()

    assert lost["child"] == back["engine"] == victim
    while_away = [e for e in published(run, other, 0.0) if e["timestamp"] < back["timestamp"]]
    assert published(run, victim, back["timestamp"])[0]["version"] >= while_away[-1]["version"]
    assert all(e["accepted"] for e in run.events("adapter_published"))
    assert 1 in run.every("prior_engines_ready")
    assert run.metrics()["prior_publications_refused_total"] == 0
    assert run.metrics()["prior_sent_total"] > n_sent
    failed = run.events("child_failed", began)
    assert [e["child"] for e in failed] == [victim, victim], failed
    assert out["child"] == victim and not published(run, victim, out["timestamp"])
    assert run.events("prior_engine_ready", began) == [back]
    assert "Traceback" not in run.output()

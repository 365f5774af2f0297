"""A run with a language model whose learner is killed."""

import os
import random
import shlex
import signal
import time

import pytest

from tests.chaos.real_run import EXIT_RESUMABLE
from tests.e2e.test_env_faults import faulty_run

TUNED = shlex.split(
    """--num-actors 1 --replay.num-shards 1 --prior.enabled true --prior.backend transformers
    --prior.deadline-s 5 --language.enabled true --schedule.wm-train-freq 16
    --schedule.llm-train-freq 1 --language.publish-every 1"""
)


@pytest.mark.fault(child="language learner", lost="its updates since the last checkpoint")
def test_a_killed_language_learner_goes_on_from_the_checkpoint(tmp_path, fault_seed):
    run = faulty_run(tmp_path, [], *TUNED)
    run.start()
    run.wait_until(
        lambda: len(run.events("adapter_published")) > 2 and run.events("checkpoint"),
        "adapters and a checkpoint",
    )
    known = run.pids()["language-learner"]
    time.sleep(random.Random(fault_seed).uniform(0.0, 3.0))
    os.kill(known, signal.SIGKILL)
    run.wait_until(lambda: run.events("language_learner_replaced"), "a successor")
    n_published = len(run.events("adapter_published"))
    run.wait_until(
        lambda: len(run.events("adapter_published")) > n_published + 1, "adapters of the successor"
    )
    run.wait_until(lambda: run.pids().get("language-learner") not in (None, known), "its process")
    n_checkpoints = len(run.events("checkpoint"))
    run.wait_until(lambda: len(run.events("checkpoint")) > n_checkpoints, "a checkpoint with it")
    assert run.stop() == EXIT_RESUMABLE, run.output()

    (replaced,) = run.events("language_learner_replaced")
    before = [e["path"] for e in run.events("checkpoint") if e["timestamp"] < replaced["timestamp"]]
    assert replaced["source"] == before[-1]
    published = run.events("adapter_published")
    versions = [e["version"] for e in published]
    assert versions == sorted(set(versions)), versions
    assert all(e["accepted"] for e in published), published
    assert [e["child"] for e in run.events("child_failed")] == ["language-learner"]
    assert "Traceback" not in run.output()

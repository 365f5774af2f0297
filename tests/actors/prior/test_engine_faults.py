"""Two real vLLM engines that are stopped, slowed and killed: clients go on, and counters say so.

The last test kills the first engine; until then both serve. What an engine may answer instead of
scores is in test_hostile_answers.py.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from actors.prior import prior_engine_actor
from actors.prior.client import PriorClient
from actors.prior.config import PriorConfig
from actors.prior.prior_engine_actor import RayPriorTransport
from actors.prior.transformers_backend import TransformersBackend
from learner.language.adapter import Adapter, mark_withdrawn
from learner.language.prompt import PromptBuilder, ScoreRequest
from tests.actors.prior.conftest import EngineStarter
from tests.actors.prior.tuned_versions import RANK, tampered, tuned_versions

OPTIONS = tuple(f"option {i}" for i in range(7))
DEADLINE_S = 3.0  # far above what an answer takes, even on a busy machine


@dataclass(frozen=True)
class Pair:
    """Two engine actors, which find their first version on disk."""

    engines: tuple[ray.actor.ActorHandle, ray.actor.ActorHandle]
    config: PriorConfig
    adapters: list[Adapter]
    folder: Path  # where published versions lie

    def client(self, *, home: int = 0, **settings: float) -> PriorClient:
        config = replace(self.config, **settings)
        transport = RayPriorTransport(*self.engines, home=home, deadline_s=config.deadline_s)
        return PriorClient(config, transport, seed=0)

    def pid(self, index: int) -> int:
        return ray.get(self.engines[index].ping.remote())

    def n_scored(self) -> list[int]:
        return [health.n_scored for health in ray.get([e.health.remote() for e in self.engines])]


@pytest.fixture(scope="module")
def pair(
    tiny_llm: Path, start_engine: EngineStarter, tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    all_versions = tuned_versions(tiny_llm, tmp_path_factory.mktemp("adapters"), 3)
    folder = tmp_path_factory.mktemp("published")
    adapters = [move(adapter, folder) for adapter in all_versions[:1]] + all_versions[1:]
    config = PriorConfig(model=str(tiny_llm), deadline_s=DEADLINE_S, kv_cache_mb=64, cache_size=0)
    engines = tuple(start_engine(config, max_lora_rank=RANK, adapters_dir=folder) for _ in range(2))
    ready = ray.get([engine.start.remote() for engine in engines], timeout=400)
    assert [report.version for report in ready] == [1, 1]
    return Pair(engines, config, adapters, folder)


def move(adapter: Adapter, folder: Path) -> Adapter:
    """The same version, as published in `folder`."""
    copy = folder / Path(adapter.path).name
    shutil.copytree(adapter.path, copy)
    return Adapter(adapter.version, str(copy))


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """The process and those below it stand still."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in family:
        process.suspend()
    try:
        yield
    finally:
        for process in family:
            process.resume()


def fallbacks(client: PriorClient) -> dict[str, float]:
    """What is not zero, by reason."""
    begin, end = "prior_fallback_", "_total"
    stats = client.stats()
    return {
        name.removeprefix(begin).removesuffix(end): value
        for name, value in stats.items()
        if name.startswith(begin) and name.endswith(end) and value and name != begin + "total"
    }


def ask(client: PriorClient, text: str):
    return client.ask([text], [OPTIONS]).collect()


def test_clients_are_spread_and_engines_agree(pair: Pair) -> None:
    before = pair.n_scored()
    priors = [ask(pair.client(home=home), "the same state") for home in (0, 1, 3)]
    assert [a - b for a, b in zip(pair.n_scored(), before, strict=True)] == [1, 2]
    for prior in priors[1:]:
        np.testing.assert_allclose(prior.probabilities, priors[0].probabilities, atol=1e-5)


def test_every_engine_takes_every_version_while_it_answers(pair: Pair) -> None:
    """Answers of an old version are still those of the old version."""
    version_2 = move(pair.adapters[1], pair.folder)
    oracle = TransformersBackend(pair.config, Path(pair.config.model))
    requests = [question(pair, f"state {i}") for i in range(4)]
    assert oracle.publish(1, pair.adapters[0].path).accepted
    expected = {1: oracle.score(requests)}
    asked = [engine.score.remote(requests) for engine in pair.engines for _ in range(4)]
    published = [e.publish.remote(version_2.version, version_2.path) for e in pair.engines]
    asked += [engine.score.remote(requests) for engine in pair.engines for _ in range(4)]
    assert all(report.accepted for report in ray.get(published))
    asked += [engine.score.remote(requests) for engine in pair.engines]
    assert oracle.publish(2, version_2.path).accepted
    expected[2] = oracle.score(requests)
    answers = ray.get(asked)
    assert {answer.version for answer in answers} == {1, 2}
    assert [answer.version for answer in answers[-2:]] == [2, 2]
    for answer in answers:
        for ours, theirs in zip(answer.log_probs, expected[answer.version].log_probs, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=5e-4)


def test_a_version_that_is_told_twice_is_no_refusal(pair: Pair) -> None:
    """An engine that loaded it at its start is told of it again by the controller."""
    report = ray.get(pair.engines[0].publish.remote(2, pair.adapters[1].path))
    assert report.accepted and ray.get(pair.engines[0].health.remote()).n_refused == 0


def test_a_folder_deleted_behind_its_engine_harms_nobody(pair: Pair) -> None:
    shutil.rmtree(pair.folder / Path(pair.adapters[0].path).name)
    client = pair.client()
    assert ask(client, "after the deletion").available.all() and client.version == 2
    gone = pair.folder / "adapter-000009"
    report = ray.get(pair.engines[0].publish.remote(9, str(gone)))
    assert not report.accepted and "no usable check.json" in report.reason
    assert ask(client, "still").available.all() and fallbacks(client) == {}


def test_a_version_that_one_engine_refuses_is_withdrawn_from_the_other(
    pair: Pair, tmp_path: Path
) -> None:
    """Answers are those of the version before again, and the version after is taken by both."""
    requests = [question(pair, f"state {i}") for i in range(4)]
    expected = ray.get(pair.engines[1].score.remote(requests))
    client = pair.client(home=1)
    wrong, right = tampered(pair.adapters[2], tmp_path), move(pair.adapters[2], pair.folder)
    refused = ray.get(pair.engines[0].publish.remote(3, str(wrong)))
    accepted = ray.get(pair.engines[1].publish.remote(3, right.path))
    assert (refused.accepted, accepted.accepted) == (False, True)
    assert ask(client, "state 0").available.all() and client.version == 3
    mark_withdrawn(Path(right.path))
    ray.get(pair.engines[1].withdraw.remote(3))
    served = ray.get(pair.engines[1].score.remote(requests))
    assert (served.version, expected.version) == (2, 2)
    for ours, before in zip(served.log_probs, expected.log_probs, strict=True):
        np.testing.assert_allclose(ours, before, atol=1e-5)
    assert ask(client, "state 1").available.all() and client.version == 2
    assert "withdrawn" in ray.get(pair.engines[0].publish.remote(3, right.path)).reason
    after = pair.folder / "adapter-000004"
    shutil.copytree(pair.adapters[2].path, after)
    reports = ray.get([engine.publish.remote(4, str(after)) for engine in pair.engines])
    assert all(report.accepted for report in reports)


def question(pair: Pair, text: str) -> ScoreRequest:
    builder = PromptBuilder(Path(pair.config.model), pair.config.prompt, seed=0)
    return builder.build(text, OPTIONS).request


def test_a_prompt_beyond_the_models_length_moves_nobody_away(pair: Pair) -> None:
    transport = RayPriorTransport(*pair.engines, deadline_s=DEADLINE_S)
    handle = transport.submit((ScoreRequest((5,) * 5_000, ((6,), (7,))),))
    assert transport.wait([handle], 30.0)
    with pytest.raises(prior_engine_actor.PriorUnavailable):
        transport.result(handle)
    before = pair.n_scored()
    handle = transport.submit((question(pair, "fine"),))
    assert transport.wait([handle], 30.0) and transport.result(handle).log_probs
    assert [a - b for a, b in zip(pair.n_scored(), before, strict=True)] == [1, 0]


def test_duplicate_and_empty_options(pair: Pair) -> None:
    client = pair.client()
    twice = ("jump", "jump", "", "wait")
    prior = client.ask(["a", "b"], [twice, ("", "", "", "")]).collect()
    assert prior.available.tolist() == [True, False]
    assert (prior.probabilities[0] > 0).tolist() == [True, True, False, True]
    assert prior.probabilities[0].sum() == pytest.approx(1.0)
    assert fallbacks(client) == {"no_options": 1.0}


@pytest.mark.fault(child="prior engine, hung", lost="nothing")
def test_a_hung_engine_costs_one_deadline_then_the_other_answers(
    pair: Pair, fault_seed: int
) -> None:
    hung = random.Random(fault_seed).randrange(2)
    client = pair.client(home=hung)
    assert ask(client, "before").available.all()
    with frozen(pair.pid(hung)):
        began = time.monotonic()
        assert not ask(client, "hung").available.any()
        assert DEADLINE_S <= time.monotonic() - began < DEADLINE_S + 3.0
        for i in range(4):
            assert ask(client, f"elsewhere {i}").available.all()
    assert fallbacks(client) == {"deadline": 1.0}


def test_a_slow_engine_is_left_for_a_while_only(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it answers too late is counted; back at home once the time away is over."""
    monkeypatch.setattr(prior_engine_actor, "AWAY_S", 1.0)
    client = pair.client(home=1, deadline_s=0.5)
    with frozen(pair.pid(1)):
        assert not ask(client, "slow").available.any()
        client.ask(["elsewhere"], [OPTIONS]).collect(deadline_s=30.0)
    until = time.monotonic() + 30.0
    while not client.stats()["prior_late_total"] and time.monotonic() < until:
        time.sleep(0.1)
        client.ask([""], [OPTIONS])  # takes in what has come
    time.sleep(1.0)
    before = pair.n_scored()
    client.ask(["home again"], [OPTIONS]).collect(deadline_s=30.0)
    assert [a - b for a, b in zip(pair.n_scored(), before, strict=True)] == [0, 1]
    assert fallbacks(client) == {"deadline": 1.0}
    assert client.stats()["prior_late_total"] == 1.0


def test_a_killed_engine_leaves_the_other_serving(pair: Pair) -> None:
    """The questions that were under way fall back, and none after them."""
    client = pair.client(home=0)
    assert ask(client, "before").available.all()
    os.kill(pair.pid(0), signal.SIGKILL)
    answered = [bool(ask(client, f"after {i}").available.all()) for i in range(6)]
    assert all(answered[1:])
    assert set(fallbacks(client)) <= {"dead", "deadline"}
    assert sum(answered) == 6 - sum(fallbacks(client).values())
    assert client.stats()["prior_resting"] == 0.0

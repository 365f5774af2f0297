"""Real engines: vLLM inside a Ray actor and transformers in this process give the same answers.

vLLM is started once for the module; the last test kills it.
"""

from __future__ import annotations

import random
import shutil
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import torch

from actors.prior.backend import LocalPriorTransport, ScoreRequest
from actors.prior.client import PriorClient
from actors.prior.config import PriorConfig
from actors.prior.local_engine import LocalPriorEngine
from actors.prior.prior_engine_actor import (
    ENGINE_ENV,
    EngineReady,
    RayPriorTransport,
    engine_env,
)
from actors.prior.transformers_backend import TransformersBackend
from learner.language.adapter import Adapter, AdapterCheck, mark_withdrawn
from learner.language.prompt import PromptBuilder
from learner.language.prompt_config import PromptConfig
from learner.language.tiny_llm import mario_line
from tests.actors.prior.conftest import EngineStarter
from tests.actors.prior.tuned_versions import RANK, tampered, tuned_versions

COMMANDS = (
    "take key", "take knife from table", "open door", "open chest", "go north", "go south",
    "cook carrot with stove", "cook carrot with oven", "look", "look around", "inventory", "wait",
)  # fmt: skip
OPTIONS = tuple(f"option {i}" for i in range(62))
LONGEST = PromptConfig(max_tokens=544, reasoning_tokens=8)  # room for prompts of all kinds


@dataclass(frozen=True)
class Serving:
    """A running engine actor and what it serves."""

    actor: ray.actor.ActorHandle
    ready: EngineReady
    config: PriorConfig

    def client(self, seed: int = 0) -> PriorClient:
        config = replace(self.config, prompt=PromptConfig())
        return PriorClient(config, RayPriorTransport(self.actor), seed=seed)


@pytest.fixture(scope="module")
def serving(tiny_llm: Path, start_engine: EngineStarter) -> Serving:
    config = PriorConfig(model=str(tiny_llm), deadline_s=60.0, kv_cache_mb=64, prompt=LONGEST)
    actor = start_engine(config, max_lora_rank=RANK)
    return Serving(actor, ray.get(actor.start.remote(), timeout=300), config)


@pytest.fixture(scope="module")
def adapters(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    return tuned_versions(tiny_llm, tmp_path_factory.mktemp("adapters"), 2)


def make_requests(folder: Path, n_states: int, seed: int, **settings: object) -> list[ScoreRequest]:
    rng = np.random.default_rng(seed)
    builder = PromptBuilder(folder, PromptConfig(**settings), seed=seed)
    requests = []
    for _ in range(n_states):
        options = OPTIONS[: rng.choice([2, 3, 7, 12, 40])]
        if settings.get("scoring") == "text":
            options = tuple(rng.permutation(COMMANDS)[: rng.choice([2, 3, 7, 12])])
        prompt = builder.build(mario_line(rng), options)
        requests.append(prompt.request)
    return requests


def joint_by_full_rows(backend: TransformersBackend, request: ScoreRequest) -> np.ndarray:
    """Each answer behind the whole prompt, in a forward pass of its own."""
    joint = []
    for answer in request.answers:
        ids = (*request.token_ids, *answer)
        with torch.no_grad():
            log_probs = backend._model(torch.tensor([ids])).logits[0].log_softmax(-1)
        first = len(request.token_ids) - 1
        joint.append(sum(float(log_probs[first + i, token]) for i, token in enumerate(answer)))
    return np.array(joint)


def assert_equal_scores(ours, theirs, tolerance: float = 1e-4) -> None:
    for mine, other in zip(ours.log_probs, theirs.log_probs, strict=True):
        np.testing.assert_allclose(mine, other, atol=tolerance)


def test_oracle_batches_exactly(tiny_llm: Path) -> None:
    backend = TransformersBackend(PriorConfig(), tiny_llm)
    requests = make_requests(tiny_llm, 12, seed=1)
    together = backend.score(requests)
    for request, row in zip(requests, together.log_probs, strict=True):
        np.testing.assert_allclose(backend.score([request]).log_probs[0], row, atol=1e-5)


def test_oracle_against_a_plain_forward(tiny_llm: Path) -> None:
    backend = TransformersBackend(PriorConfig(), tiny_llm)
    (request,) = make_requests(tiny_llm, 1, seed=2)
    with torch.no_grad():
        logits = backend._model(torch.tensor([request.token_ids])).logits[0, -1]
    expected = logits.log_softmax(-1)[[label for (label,) in request.answers]].numpy()
    np.testing.assert_allclose(backend.score([request]).log_probs[0], expected, atol=1e-6)


def test_text_is_scored_as_each_answer_alone_would_be(tiny_llm: Path) -> None:
    backend = TransformersBackend(PriorConfig(), tiny_llm)
    requests = make_requests(tiny_llm, 30, seed=7, scoring="text")
    assert max(len(answer) for request in requests for answer in request.answers) > 4
    for request, row in zip(requests, backend.score(requests).log_probs, strict=True):
        np.testing.assert_allclose(row, joint_by_full_rows(backend, request), atol=1e-4)


def test_a_thought_comes_before_the_answer(tiny_llm: Path) -> None:
    """Scores are those behind the model's own greedy words."""
    backend = TransformersBackend(PriorConfig(), tiny_llm)
    for request in make_requests(tiny_llm, 5, seed=8, max_tokens=544, reasoning_tokens=6):
        said, ids = [], list(request.token_ids)
        for _ in range(request.thought.max_tokens):
            with torch.no_grad():
                said.append(int(backend._model(torch.tensor([ids])).logits[0, -1].argmax()))
            ids.append(said[-1])
        completed = request.thought.complete(said)
        assert len(completed) > len(request.thought.close_ids), "the model says nothing at all"
        plain = ScoreRequest((*request.token_ids, *completed), request.answers)
        ours, theirs = backend.score([request]), backend.score([plain])
        np.testing.assert_allclose(ours.log_probs[0], theirs.log_probs[0], atol=1e-5)


def test_local_engine_is_deterministic_and_takes_adapters(
    tiny_llm: Path, adapters: list[Adapter]
) -> None:
    config = PriorConfig(model=str(tiny_llm), backend="transformers")
    folder = Path(adapters[0].path).parent
    engines = [LocalPriorEngine(config, adapters_dir=folder) for _ in range(2)]
    assert [engine.health().version for engine in engines] == [2, 2]
    priors = [
        PriorClient(config, LocalPriorTransport(engine), seed=0)
        .ask(["a", "b"], [OPTIONS[:7]] * 2)
        .collect()
        for engine in engines
    ]
    np.testing.assert_array_equal(priors[0].probabilities, priors[1].probabilities)
    assert priors[0].available.all()
    # Going back to an old version is refused, and so is a folder that is gone.
    assert not engines[0].publish(1, adapters[0].path).accepted
    assert "no usable check.json" in engines[0].publish(3, "/nowhere").reason


def test_oracle_refuses_a_wrong_adapter_and_goes_on(
    tiny_llm: Path, adapters: list[Adapter], tmp_path: Path
) -> None:
    backend = TransformersBackend(PriorConfig(), tiny_llm)
    requests = make_requests(tiny_llm, 3, seed=3)
    before = backend.score(requests)
    report = backend.publish(1, str(tampered(adapters[0], tmp_path)))
    assert not report.accepted and report.max_gap > 0.1
    assert_equal_scores(backend.score(requests), before, 1e-6)
    assert backend.publish(1, adapters[0].path).accepted
    assert backend.publish(2, adapters[1].path).accepted
    health = backend.health()
    assert (health.version, health.n_published, health.n_refused) == (2, 2, 1)


def test_a_local_engine_goes_back_from_a_withdrawn_version(
    tiny_llm: Path, adapters: list[Adapter], tmp_path: Path
) -> None:
    for adapter in adapters:
        shutil.copytree(adapter.path, tmp_path / Path(adapter.path).name)
    config = PriorConfig(model=str(tiny_llm), backend="transformers")
    engine = LocalPriorEngine(config, adapters_dir=tmp_path)
    requests = make_requests(tiny_llm, 3, seed=10)
    oracle = TransformersBackend(config, tiny_llm)
    base = oracle.score(requests)
    assert oracle.publish(1, adapters[0].path).accepted
    mark_withdrawn(tmp_path / Path(adapters[1].path).name)
    engine.withdraw(2)
    assert engine.health().version == 1
    assert_equal_scores(engine.score(requests), oracle.score(requests), 1e-5)
    engine.withdraw(7)  # one that does not serve
    assert engine.health().version == 1
    oracle.withdraw(1)
    assert_equal_scores(oracle.score(requests), base, 1e-6)


def test_gpu_engines_keep_their_own_process() -> None:
    assert engine_env("cpu") == ENGINE_ENV
    on_cuda = engine_env("cuda")
    assert on_cuda["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1"
    assert on_cuda["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"  # forked ones can't use CUDA


# Below this line: one vLLM engine, in this order.


@pytest.mark.parametrize("scoring", ["label", "text"])
def test_vllm_equals_the_oracle(serving: Serving, tiny_llm: Path, scoring: str) -> None:
    requests = make_requests(tiny_llm, 200, seed=4, scoring=scoring)
    oracle = TransformersBackend(PriorConfig(), tiny_llm).score(requests)
    served = ray.get(serving.actor.score.remote(requests))
    assert served.version == 0 and serving.ready.version == 0
    assert_equal_scores(served, oracle)
    assert np.ptp(np.concatenate(oracle.log_probs)) > 1.0  # the comparison could have failed
    # The same again, now from cached prefixes.
    assert_equal_scores(ray.get(serving.actor.score.remote(requests)), oracle)


def test_vllm_thinks_like_the_oracle(serving: Serving, tiny_llm: Path) -> None:
    requests = make_requests(tiny_llm, 20, seed=9, max_tokens=544, reasoning_tokens=6)
    oracle = TransformersBackend(PriorConfig(), tiny_llm).score(requests)
    assert_equal_scores(ray.get(serving.actor.score.remote(requests)), oracle)


def test_vllm_serves_many_clients_at_once(serving: Serving, tiny_llm: Path) -> None:
    clients = [serving.client(seed) for seed in range(8)]
    states = [[f"client {i} state {j}" for j in range(4)] for i in range(8)]
    asked = [
        client.ask(mine, [OPTIONS[:7]] * 4) for client, mine in zip(clients, states, strict=True)
    ]
    oracle = TransformersBackend(PriorConfig(), tiny_llm)
    for seed, (pending, mine) in enumerate(zip(asked, states, strict=True)):
        prior = pending.collect()
        assert prior.available.all() and pending.version == 0
        builder = PromptBuilder(tiny_llm, PromptConfig(), seed=seed)
        prompt = builder.build(mine[0], OPTIONS[:7])
        (row,) = oracle.score([prompt.request]).log_probs
        expected = 0.95 * torch.tensor(row).softmax(0).numpy() + 0.05 / 7
        np.testing.assert_allclose(prior.probabilities[0], expected, atol=1e-4)


def test_vllm_follows_the_trainer(
    serving: Serving, tiny_llm: Path, adapters: list[Adapter], tmp_path: Path
) -> None:
    client = serving.client()
    before = client.ask(["a pit 3 ahead"], [OPTIONS[:7]]).collect()
    requests = make_requests(tiny_llm, 10, seed=5)
    base = ray.get(serving.actor.score.remote(requests))
    oracle = TransformersBackend(PriorConfig(), tiny_llm)
    for adapter in adapters:
        report = ray.get(serving.actor.publish.remote(adapter.version, adapter.path))
        assert report.accepted and report.max_gap < 1e-3, report
        assert oracle.publish(adapter.version, adapter.path).accepted
        served = ray.get(serving.actor.score.remote(requests))
        assert served.version == adapter.version
        assert_equal_scores(served, oracle.score(requests), 5e-4)
        assert np.abs(served.log_probs[0] - base.log_probs[0]).max() > 0.1
    # The client learns of the version from any answer, and asks anew what it knew.
    client.ask(["another state"], [OPTIONS[:7]]).collect()
    after = client.ask(["a pit 3 ahead"], [OPTIONS[:7]]).collect()
    assert client.version == 2
    assert np.abs(after.probabilities - before.probabilities).max() > 1e-3


def test_vllm_refuses_a_wrong_adapter_and_goes_on(
    serving: Serving, tiny_llm: Path, adapters: list[Adapter], tmp_path: Path
) -> None:
    requests = make_requests(tiny_llm, 3, seed=6)
    before = ray.get(serving.actor.score.remote(requests))
    wrong = ray.get(serving.actor.publish.remote(7, str(tampered(adapters[1], tmp_path))))
    assert not wrong.accepted and wrong.max_gap == pytest.approx(0.5, abs=0.01)
    gone = ray.get(serving.actor.publish.remote(8, "/nowhere"))
    assert not gone.accepted and "no usable check.json" in gone.reason
    empty = tmp_path / "empty"
    empty.mkdir()
    AdapterCheck(tuple(requests[:1]), before.log_probs[:1]).write(empty)
    assert not ray.get(serving.actor.publish.remote(9, str(empty))).accepted
    assert_equal_scores(ray.get(serving.actor.score.remote(requests)), before, 1e-5)
    health = ray.get(serving.actor.health.remote())
    assert (health.version, health.n_published, health.n_refused) == (2, 2, 3)


def test_a_prompt_that_is_too_long_harms_nobody_else(serving: Serving, tiny_llm: Path) -> None:
    long = ScoreRequest((5,) * 600, (6, 7))
    with pytest.raises(ray.exceptions.RayTaskError):
        ray.get(serving.actor.score.remote([long]))
    assert serving.client().ask(["a state"], [OPTIONS[:3]]).collect().available.all()


@pytest.mark.fault(child="prior engine", lost="nothing")
def test_a_killed_engine_is_a_counted_fallback(serving: Serving, fault_seed: int) -> None:
    client = serving.client()
    assert client.ask(["before"], [OPTIONS[:7]]).collect().available.all()
    engine = psutil.Process(serving.ready.pid)
    victims = engine.children(recursive=True)
    random.Random(fault_seed).shuffle(victims)
    for child in victims:
        child.send_signal(signal.SIGKILL)
    for i in range(2):
        assert not client.ask([f"after {i}"], [OPTIONS[:7]]).collect().available.any()
    assert client.stats()["prior_fallback_dead_total"] == 2.0
    # What is known stays known, and the actor has left rather than serve from a dead engine.
    assert client.ask(["before"], [OPTIONS[:7]]).collect().available.all()
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(serving.actor.ping.remote(), timeout=60)

"""The prior client against a scripted engine: what it sends, what it makes of answers, and how it
gets by without any.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
import pytest

from actors.prior.backend import (
    LocalPriorTransport,
    PriorUnavailable,
    ScoreBatch,
    ScoreRequest,
    invalid_reason,
)
from actors.prior.client import PATIENCE, PriorClient
from actors.prior.config import PriorConfig
from learner.language.prompt import PromptBuilder
from learner.language.prompt_config import PromptConfig

OPTIONS = ("wait", "walk right", "run right", "jump")


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class ScriptedTransport:
    """Answers when `release` says so; waiting makes the clock run."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.sent: list[tuple[ScoreRequest, ...]] = []
        self.ready: dict[Hashable, ScoreBatch | PriorUnavailable] = {}
        self.forgotten: list[Hashable] = []

    def submit(self, requests: tuple[ScoreRequest, ...]) -> int:
        self.sent.append(requests)
        return len(self.sent) - 1

    def wait(self, handles: Sequence[Hashable], timeout_s: float) -> list[Hashable]:
        done = [handle for handle in handles if handle in self.ready]
        if not done:
            self.clock.now_s += timeout_s
        return done

    def result(self, handle: Hashable) -> ScoreBatch:
        answer = self.ready.pop(handle)
        if isinstance(answer, PriorUnavailable):
            raise answer
        return answer

    def forget(self, handle: Hashable) -> None:
        self.forgotten.append(handle)

    def release(self, handle: int, version: int = 0) -> None:
        """Log-probability of a label is -its token id / 10."""
        rows = [-np.array(r.answers, np.float32)[:, 0] / 10 for r in self.sent[handle]]
        self.ready[handle] = ScoreBatch(tuple(rows), version)


class Bench:
    """A client with its scripted surroundings."""

    def __init__(self, builder: PromptBuilder, **settings: float) -> None:
        self.clock = Clock()
        self.transport = ScriptedTransport(self.clock)
        self.config = PriorConfig(**settings)
        self.client = PriorClient(
            self.config, self.transport, seed=0, builder=builder, clock=self.clock
        )

    def count(self, name: str) -> int:
        return int(self.client.stats()[f"prior_{name}_total"])


@pytest.fixture(scope="module")
def builder(tiny_llm: Path) -> PromptBuilder:
    return PromptBuilder(tiny_llm, PromptConfig(), seed=0)


@pytest.mark.parametrize(("temperature", "epsilon"), [(1.0, 0.0), (2.0, 0.1), (0.5, 1.0)])
def test_probabilities_by_hand(builder: PromptBuilder, temperature: float, epsilon: float) -> None:
    bench = Bench(builder, temperature=temperature, epsilon_uniform=epsilon)
    pending = bench.client.ask(["a state"], [OPTIONS])
    bench.transport.release(0)
    prior = pending.collect()
    labels = np.array(builder.build("a state", OPTIONS).request.answers)[:, 0]
    weights = np.exp(-labels / 10 / temperature)
    expected = (1 - epsilon) * weights / weights.sum() + epsilon / 4
    np.testing.assert_allclose(prior.probabilities, expected[None], rtol=1e-5)
    assert prior.probabilities.dtype == np.float32 and prior.available.tolist() == [True]
    assert pending.collect() is prior


@pytest.mark.parametrize("per_token", [False, True])
def test_per_token_priors_do_not_shrink_with_an_options_length(
    tiny_llm: Path, per_token: bool
) -> None:
    """Each token is as likely: sums tell lengths, means nothing; from the cache too."""
    builder = PromptBuilder(tiny_llm, PromptConfig(scoring="text"), seed=0)
    bench = Bench(builder, per_token=per_token, epsilon_uniform=0.0)
    pending = bench.client.ask(["a state"], [OPTIONS])
    (request,) = bench.transport.sent[0]
    lengths = np.array([len(answer) for answer in request.answers])
    bench.transport.ready[0] = ScoreBatch(((-2.0 * lengths).astype(np.float32),), 0)
    weights = np.exp(-2.0 * (np.ones(4) if per_token else lengths - lengths.min()))
    expected = weights / weights.sum()
    assert len(set(lengths.tolist())) > 1
    again = bench.client.ask(["a state"], [OPTIONS])
    for prior in (pending.collect(), again.collect()):
        np.testing.assert_allclose(prior.probabilities, expected[None], rtol=1e-5)


def test_the_order_in_which_labels_are_dealt_does_not_matter(tiny_llm: Path) -> None:
    """An engine that scores each option by its text gives the same prior under every deal."""

    class TextScorer:
        def __init__(self, builder: PromptBuilder) -> None:
            self.builder = builder

        def score(self, requests: Sequence[ScoreRequest]) -> ScoreBatch:
            return ScoreBatch(tuple(self.row(request) for request in requests), 0)

        def row(self, request: ScoreRequest) -> np.ndarray:
            body = self.builder.text(request.token_ids).rpartition("Actions:\n")[2]
            lines = body.partition("<|im_end|>")[0].splitlines()
            length = {line[0]: len(line) for line in lines}
            labels = [self.builder.text(answer) for answer in request.answers]
            return np.array([-length[label] for label in labels], np.float32)

    priors, prompts = [], set()
    for seed in range(6):
        builder = PromptBuilder(tiny_llm, PromptConfig(), seed=seed)
        transport = LocalPriorTransport(TextScorer(builder))
        client = PriorClient(PriorConfig(), transport, seed=seed, builder=builder)
        priors.append(client.ask(["a state"], [OPTIONS]).collect().probabilities)
        prompts.add(builder.build("a state", OPTIONS).request.token_ids)
    assert len(prompts) > 1
    for prior in priors[1:]:
        np.testing.assert_array_equal(prior, priors[0])


def test_only_legal_options_are_offered(builder: PromptBuilder) -> None:
    bench = Bench(builder)
    legal = np.array([[True, False, True, False], [False, False, True, False], [False] * 4])
    pending = bench.client.ask(["a", "b", "c"], [OPTIONS] * 3, legal)
    assert len(bench.transport.sent) == 1 and len(bench.transport.sent[0]) == 1
    bench.transport.release(0)
    prior = pending.collect()
    assert (prior.probabilities[0] > 0).tolist() == legal[0].tolist()
    assert prior.probabilities[1].tolist() == [0, 0, 1, 0]  # nothing to choose, nothing to ask
    assert prior.available.tolist() == [True, True, False]
    np.testing.assert_allclose(prior.probabilities[:2].sum(1), 1, rtol=1e-6)
    assert bench.count("fallback_no_options") == 1


def test_known_and_open_questions_are_not_sent_again(builder: PromptBuilder) -> None:
    bench = Bench(builder)
    first = bench.client.ask(["a", "b", "a"], [OPTIONS] * 3)
    second = bench.client.ask(["b"], [OPTIONS])
    assert [len(sent) for sent in bench.transport.sent] == [2]
    assert bench.count("shared") == 2
    bench.transport.release(0)
    assert second.collect().available.all() and first.collect().available.all()
    assert bench.client.ask(["a"], [OPTIONS]).collect().available.all()
    assert len(bench.transport.sent) == 1
    assert bench.count("cache_hits") == 1 and bench.count("fallback") == 0


def test_a_late_answer_is_not_waited_for_but_kept(builder: PromptBuilder) -> None:
    bench = Bench(builder, deadline_s=0.5)
    prior = bench.client.ask(["a"], [OPTIONS]).collect()
    assert not prior.available.any() and not prior.probabilities.any()
    assert bench.clock.now_s == pytest.approx(100.5)
    assert bench.count("fallback_deadline") == 1
    bench.transport.release(0)
    assert bench.client.ask(["a"], [OPTIONS]).collect().available.all()
    assert bench.count("late") == 1 and len(bench.transport.sent) == 1


def test_the_deadline_counts_from_the_ask(builder: PromptBuilder) -> None:
    bench = Bench(builder, deadline_s=0.5)
    pending = bench.client.ask(["a"], [OPTIONS])
    bench.clock.now_s += 0.4  # the other half of the environments searched meanwhile
    pending.collect()
    assert bench.clock.now_s == pytest.approx(100.5)
    pending = bench.client.ask(["b"], [OPTIONS])
    pending.collect(deadline_s=0.1)
    assert bench.clock.now_s == pytest.approx(100.6)


@pytest.mark.parametrize(
    "row",
    [
        np.array([-1, np.nan, -1, -1]),
        np.array([-1, -np.inf, -1, -1]),
        np.array([-1.0, -2.0]),
        np.array([[-1.0, -1.0, -1.0, -1.0]]),
        np.array([0.5, -1, -1, -1]),
    ],
    ids=["nan", "infinite", "short", "two dimensions", "above 0"],
)
def test_nonsense_is_counted_and_not_cached(builder: PromptBuilder, row: np.ndarray) -> None:
    bench = Bench(builder)
    pending = bench.client.ask(["a", "b"], [OPTIONS] * 2)
    good = np.full(4, -1.0, np.float32)
    bench.transport.ready[0] = ScoreBatch((row.astype(np.float32), good), 0)
    assert invalid_reason(row, 4)
    assert pending.collect().available.tolist() == [False, True]
    assert bench.count("fallback_invalid") == 1 == bench.count("fallback")
    assert len(bench.client.ask(["a"], [OPTIONS]).rows) == 1 and len(bench.transport.sent) == 2


def test_a_batch_that_is_too_short_is_invalid(builder: PromptBuilder) -> None:
    bench = Bench(builder)
    pending = bench.client.ask(["a", "b"], [OPTIONS] * 2)
    bench.transport.ready[0] = ScoreBatch((np.full(4, -1.0, np.float32),), 0)
    assert pending.collect().available.tolist() == [True, False]
    assert bench.count("fallback_invalid") == 1


def test_a_dead_engine_costs_no_wait_and_is_probed(builder: PromptBuilder) -> None:
    bench = Bench(builder, deadline_s=1.0, retry_s=5.0)
    for i in range(PATIENCE):
        pending = bench.client.ask([f"state {i}"], [OPTIONS])
        bench.transport.ready[i] = PriorUnavailable("gone")
        assert not pending.collect().available.any()
    assert bench.count("fallback_dead") == PATIENCE and bench.clock.now_s == 100.0
    assert not bench.client.ask(["later"], [OPTIONS]).collect().available.any()
    assert bench.count("fallback_resting") == 1 and len(bench.transport.sent) == PATIENCE
    bench.clock.now_s += 5.0
    probe = bench.client.ask(["probe"], [OPTIONS])
    assert not probe.collect().available.any()  # sent, but nobody waits for it
    assert bench.clock.now_s == 105.0 and len(bench.transport.sent) == PATIENCE + 1
    assert bench.client.stats()["prior_resting"] == 1.0
    bench.transport.release(PATIENCE)
    assert bench.client.ask(["probe"], [OPTIONS]).collect().available.all()
    bench.client.ask(["next"], [OPTIONS])
    assert bench.client.stats()["prior_resting"] == 0.0
    assert len(bench.transport.sent) == PATIENCE + 2


def test_open_questions_are_bounded_and_given_up(builder: PromptBuilder) -> None:
    bench = Bench(builder, max_in_flight=2)
    pending = bench.client.ask(["a", "b", "c"], [OPTIONS] * 3)
    assert len(bench.transport.sent[0]) == 2
    pending.collect(0.0)
    assert bench.count("fallback_overload") == 1 and bench.count("fallback_deadline") == 2
    bench.clock.now_s += 100.0
    bench.client.ask([""], [OPTIONS])
    assert bench.client.stats()["prior_in_flight"] == 0.0 and bench.transport.forgotten == [0]


def test_follows_the_engines_adapter_version(builder: PromptBuilder) -> None:
    bench = Bench(builder)
    first = bench.client.ask(["a"], [OPTIONS])
    assert first.version == -1
    bench.transport.release(0, version=3)
    first.collect()
    assert first.version == bench.client.version == 3
    bench.client.ask(["a"], [OPTIONS]).collect()
    assert len(bench.transport.sent) == 1
    second = bench.client.ask(["b"], [OPTIONS])
    bench.transport.release(1, version=4)
    second.collect()
    bench.client.ask(["a"], [OPTIONS])  # the answer of version 3 is not one of version 4
    assert len(bench.transport.sent) == 3


def test_the_version_is_that_of_the_newest_question_answered(builder: PromptBuilder) -> None:
    """It goes back with a version that is withdrawn, and not for an answer that is late."""
    bench = Bench(builder)
    late = bench.client.ask(["late"], [OPTIONS])
    for i, version in enumerate((5, 4), start=1):
        bench.clock.now_s += 0.1
        pending = bench.client.ask([f"state {i}"], [OPTIONS])
        bench.transport.release(i, version=version)
        pending.collect()
        assert bench.client.version == version
    bench.transport.release(0, version=2)
    late.collect()
    assert (late.version, bench.client.version) == (2, 4)


def test_what_can_not_be_asked(builder: PromptBuilder) -> None:
    bench = Bench(builder)
    prior = bench.client.ask(["", "a", "b"], [OPTIONS, ["x"] * 200, []]).collect()
    assert prior.probabilities.shape == (3, 200) and not prior.available.any()
    assert bench.count("fallback_no_text") == 1 == bench.count("fallback_unaskable")
    assert bench.count("fallback") == 2  # no text is no failure
    assert bench.client.ask([], []).collect().available.shape == (0,)


def test_env_actors_load_neither_vllm_nor_transformers() -> None:
    code = (
        "import sys, actors.prior.client; "
        "sys.exit(sum(name in sys.modules for name in ('vllm', 'transformers', 'peft', 'ray')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"deadline_s": 0.0}, "deadline_s must be positive, got 0.0"),
        ({"epsilon_uniform": 1.5}, r"epsilon_uniform must lie in \[0, 1\], got 1.5"),
        ({"max_in_flight": 0}, "max_in_flight must be at least 1, got 0"),
        ({"num_engines": 0}, "num_engines must be at least 1, got 0"),
        ({"cache_size": -1}, "cache_size must be at least 0, got -1"),
        ({"model": ""}, "model must be a folder or a name, got ''"),
    ],
)
def test_bad_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PriorConfig(**settings)

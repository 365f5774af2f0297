"""Asking the language model now and then: what is reused, how long, and under whose name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.prior.backend import LocalPriorTransport, ScoreBatch, ScoreRequest
from actors.prior.client import PriorClient
from actors.prior.config import PriorConfig
from learner.language.prompt import PromptBuilder
from learner.language.prompt_config import PromptConfig

OPTIONS = ("wait", "walk right", "run right", "jump")


class Scorer:
    """Answers each question differently; says which version it was when asked."""

    def __init__(self) -> None:
        self.n_asked = 0
        self.version = 0
        self.breaks = False

    def score(self, requests: Sequence[ScoreRequest]) -> ScoreBatch:
        rows = []
        for request in requests:
            self.n_asked += 1
            rows.append(-np.arange(1, len(request.answers) + 1, dtype=np.float32) * self.n_asked)
        rows = [row * np.nan for row in rows] if self.breaks else rows
        return ScoreBatch(tuple(rows), self.version)


@pytest.fixture(scope="module")
def builder(tiny_llm: Path) -> PromptBuilder:
    return PromptBuilder(tiny_llm, PromptConfig(), seed=0)


def make_client(builder: PromptBuilder, query_every: int) -> tuple[PriorClient, Scorer]:
    scorer = Scorer()
    config = PriorConfig(query_every=query_every, cache_size=0, epsilon_uniform=0.0)
    client = PriorClient(config, LocalPriorTransport(scorer), seed=0, builder=builder)
    return client, scorer


def step(client: PriorClient, text: str, *, env: int = 0, key: str = "", options=OPTIONS):
    pending = client.ask([text], [options], env_ids=[env], keys=[key])
    return pending.collect(), int(pending.versions[0])


@settings(
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    query_every=st.integers(1, 4),
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from("ab"), st.booleans(), st.booleans()),
        max_size=30,
    ),
)
def test_asks_as_often_as_the_rule_says(
    builder: PromptBuilder, query_every: int, steps: list[tuple[int, str, bool, bool]]
) -> None:
    """Steps of (env, coarse key, all options offered, first of an episode) against the rule."""
    client, scorer = make_client(builder, query_every)
    last: dict[int, tuple[str, tuple[str, ...], int]] = {}
    expected = 0
    for number, (env, key, all_offered, begins) in enumerate(steps):
        options = OPTIONS if all_offered else OPTIONS[:3]
        if begins:
            client.start_episode(env)
            last.pop(env, None)
        known = last.get(env)
        if known is None or known[:2] != (key, options) or known[2] >= query_every:
            expected += 1
            last[env] = (key, options, 1)
        else:
            last[env] = (key, options, known[2] + 1)
        prior, _ = step(client, f"state {number}", env=env, key=key, options=options)
        assert prior.available.all() and prior.probabilities.sum() == pytest.approx(1.0)
    assert scorer.n_asked == expected
    assert client.stats()["prior_reused_total"] == len(steps) - expected
    assert client.stats()["prior_rows_total"] == len(steps)


def test_a_reused_answer_keeps_its_probabilities_and_version(builder: PromptBuilder) -> None:
    client, scorer = make_client(builder, query_every=2)
    scorer.version = 3
    first, version = step(client, "one")
    scorer.version = 4
    second, reused = step(client, "two")
    assert (version, reused) == (3, 3)
    np.testing.assert_array_equal(first.probabilities, second.probabilities)
    third, newer = step(client, "three")
    assert newer == 4 and (third.probabilities != first.probabilities).any()


def test_an_answer_that_failed_is_not_reused(builder: PromptBuilder) -> None:
    client, scorer = make_client(builder, query_every=4)
    scorer.breaks = True
    assert not step(client, "one")[0].available.any()
    scorer.breaks = False
    prior, version = step(client, "two")
    assert prior.available.all() and version == 0
    assert client.stats()["prior_fallback_invalid_total"] == 1.0
    assert client.stats()["prior_reused_total"] == 0.0


def test_states_of_no_environment_are_always_asked(builder: PromptBuilder) -> None:
    client, scorer = make_client(builder, query_every=4)
    for text in "abc":
        client.ask([text], [OPTIONS]).collect()
    assert scorer.n_asked == 3


def test_rows_of_one_ask_may_have_different_versions(builder: PromptBuilder) -> None:
    client, scorer = make_client(builder, query_every=2)
    step(client, "one", env=0)
    scorer.version = 5
    pending = client.ask(["two", "new", ""], [OPTIONS] * 3, env_ids=[0, 1, 2], keys=["", "", ""])
    pending.collect()
    assert pending.versions.tolist() == [0, 5, -1] and pending.version == 5


def test_bad_setting() -> None:
    with pytest.raises(ValueError, match="query_every must be at least 1, got 0"):
        PriorConfig(query_every=0)

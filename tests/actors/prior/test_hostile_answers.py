"""A client beside an engine that answers anything: a probability distribution, or no prior."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from actors.prior.backend import ScoreBatch, ScoreRequest
from actors.prior.client import PriorClient
from actors.prior.config import PriorConfig
from learner.language.prompt import PromptBuilder
from learner.language.prompt_config import PromptConfig

MANY = settings(
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
OPTIONS = ("wait", "jump", "run")
ROWS = (
    hnp.arrays(
        st.sampled_from(["float16", "float32", "float64", "int32", "bool", "O", "U2"]),
        hnp.array_shapes(max_dims=2, max_side=4) | st.just((3,)),
    )
    | hnp.arrays("float32", 3, elements=st.floats(-30, 0, width=32))
    | hnp.arrays("float32", 3, elements=st.floats(width=32))
    | st.none()
    | st.lists(st.floats(), max_size=4)
    | st.just(np.ma.masked_array(np.zeros(3, np.float32), mask=True))
)
VERSIONS = st.integers(0, 5) | st.integers() | st.none() | st.floats() | st.just(True)


class AnyAnswer:
    """An engine of which every question gets `answer`."""

    def __init__(self, answer: object) -> None:
        self._answer = answer

    def submit(self, requests: tuple[ScoreRequest, ...]) -> Hashable:
        return 0

    def wait(self, handles: Sequence[Hashable], timeout_s: float) -> list[Hashable]:
        return list(handles)

    def result(self, handle: Hashable) -> object:
        return self._answer

    def forget(self, handle: Hashable) -> None: ...


@pytest.fixture(scope="module")
def builder(tiny_llm: Path) -> PromptBuilder:
    return PromptBuilder(tiny_llm, PromptConfig(max_tokens=256), seed=0)


def assert_sane(client: PriorClient, prompts: Sequence[str], options: Sequence) -> int:
    prior = client.ask(prompts, options).collect()
    for row, is_there in zip(prior.probabilities, prior.available, strict=True):
        assert np.isfinite(row).all() and (row >= 0).all()
        assert row.sum() == pytest.approx(1.0 if is_there else 0.0, abs=1e-5)
    assert all(np.isfinite(value) for value in client.stats().values())
    return int(prior.available.sum())


@settings(MANY, max_examples=1_000)
@given(
    answer=st.builds(
        ScoreBatch,
        st.lists(ROWS, max_size=4).map(tuple) | st.lists(ROWS, max_size=3) | st.none(),
        VERSIONS,
    )
    | st.none()
    | st.text(max_size=3)
)
@example(ScoreBatch((np.array([-1e38, -3e38, 0.0], np.float32),) * 2, 0))
@example(ScoreBatch((np.zeros(3, np.float32),) * 2, 10**30))
def test_any_answer_becomes_a_distribution_or_none(builder, answer):
    config = PriorConfig(temperature=0.01, epsilon_uniform=0.0)
    client = PriorClient(config, AnyAnswer(answer), seed=0, builder=builder)
    assert_sane(client, ["state a", "state b"], [OPTIONS, OPTIONS])
    assert 0 <= client.version < 2**31
    assert_sane(client, ["state a", "state b"], [OPTIONS, OPTIONS])  # from the cache, perhaps


@MANY
@given(
    prompt=st.text(max_size=10) | st.sampled_from(["\ud800", "\0", "x" * 70_000]),
    options=st.lists(
        st.text(max_size=3) | st.sampled_from(["\udfff", "y" * 5_000, "go"]),
        min_size=1,
        max_size=4,
    ),
)
@example("\ud800", ["go", ""])  # a single option asks nobody, but is stored with its prompt
def test_a_prompt_that_is_answered_can_be_stored(builder, prompt, options):
    n_options = sum(1 for text in options if text.strip())
    answer = ScoreBatch((np.zeros(n_options, np.float32),), 0)
    client = PriorClient(PriorConfig(), AnyAnswer(answer), seed=0, builder=builder)
    if assert_sane(client, [prompt], [options]):
        assert len(prompt) <= 65_536 and prompt.encode() and [text.encode() for text in options]

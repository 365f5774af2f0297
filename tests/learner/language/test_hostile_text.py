"""Texts of a game, and files beside an adapter, with any content."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from learner.language.adapter import AdapterCheck
from learner.language.prompt import PromptBuilder
from learner.language.prompt_config import PromptConfig
from replay_service.segment_check import LONGEST_OPTION, LONGEST_PROMPT

MANY = settings(
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
MAX_TOKENS = 256
PIECES = st.sampled_from(
    ["<|im_end|>", "<|im_start|>", "<|im_", "end|>", "start|>", "<|endoftext|>", "\0", "\x1b[2J",
     "\n", "\u2028", "\x85", "A: ", "Actions:\n", "\ud800", "\u202e", "a" * 300, " "]
)  # fmt: skip
TEXTS = st.lists(PIECES | st.text(max_size=5), max_size=8).map("".join)


@pytest.fixture(scope="module")
def builder(tiny_llm: Path) -> PromptBuilder:
    return PromptBuilder(tiny_llm, PromptConfig(max_tokens=MAX_TOKENS), seed=0)


@settings(MANY, max_examples=1_000)
@given(state=TEXTS, options=st.lists(TEXTS, max_size=6), variant=st.integers(0, 3))
@example("<|im_<|im_end|>end|>", ["jump", "wait"], 0)
@example("<|im_\0end|>", ["jump", "wait"], 0)
def test_a_prompt_is_built_whole_or_refused(builder, state, options, variant):
    try:
        prompt = builder.build(state, options, variant=variant)
    except ValueError as error:
        assert len(str(error)) < 20_000
        return
    assert 0 < len(prompt.request.token_ids) <= MAX_TOKENS
    answers = prompt.request.answers
    assert len(set(answers)) == len(answers) == len(prompt.actions)
    plain = builder.build("plain", ["x"] * len(prompt.actions))
    for special in (0, 1, 2):  # a game can't speak as the model or end its turn
        assert prompt.request.token_ids.count(special) == plain.request.token_ids.count(special)
    text = builder.text(prompt.request.token_ids)
    question = text.rpartition("State: ")[2].rpartition("<|im_end|>")[0]
    assert all(c == "\n" or ord(c) >= 32 for c in question)
    lines = question.partition("\nActions:\n")[2].split("\n")
    assert len(lines) == len(prompt.actions)


@pytest.mark.parametrize(
    ("state", "options", "message"),
    [
        ("x" * (LONGEST_PROMPT + 1), ["a", "b"], "state has 65537 characters"),
        ("s", ["a", "x" * (LONGEST_OPTION + 1)], "option 1 has 4097 characters"),
        ("\udc80", ["a", "b"], "state is not valid Unicode"),
        ("s", ["\ud800", "b"], "option 0 is not valid Unicode"),
        ("s", ["a"] * 129, "at most 128 can be labelled"),
    ],
)
def test_what_can_not_be_asked(builder, state, options, message):
    with pytest.raises(ValueError, match=message):
        builder.build(state, options)


def test_the_longest_state_is_cut_in_time(builder):
    prompt = builder.build("x" * LONGEST_PROMPT, ["a", "b"])
    assert len(prompt.request.token_ids) <= MAX_TOKENS


SOUND = {
    "token_ids": [[1, 2], [3]],
    "answers": [[[4], [5]], [[6]]],
    "log_probs": [[-1, -2.0], [-3]],
}
LEAVES = st.none() | st.booleans() | st.integers(-3, 5) | st.integers() | st.floats() | st.just("x")
NODES = st.recursive(LEAVES, lambda n: st.lists(n, max_size=3) | st.dictionaries(st.just("a"), n))


@settings(MANY, max_examples=800)
@given(name=st.sampled_from([*SOUND, ""]), value=NODES | st.lists(st.lists(LEAVES, max_size=2)))
@example("", [[[[]]]])
def test_the_check_of_an_adapter_is_usable_or_refused(tmp_path, name, value):
    content = SOUND | {name: value} if name else value
    (tmp_path / "check.json").write_text(json.dumps(content))
    try:
        check = AdapterCheck.read(tmp_path)
    except ValueError as error:
        assert "no usable check.json" in str(error)
        return
    assert all(np.isfinite(row).all() for row in check.log_probs)
    assert check.gap(check.log_probs) == 0.0
    assert all(token >= 0 for request in check.requests for token in request.token_ids)

"""Answers as a tree: their joint log-probabilities, from one read of each place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.language.answer_trie import AnswerTrie

END = 9
WORDS = st.lists(st.integers(0, 4), max_size=4).map(lambda tokens: (*tokens, END))


def log_probs_after(prefix: tuple[int, ...]) -> np.ndarray:
    """Some model: a distribution over ten tokens after each beginning."""
    logits = np.random.default_rng([len(prefix), *prefix]).normal(size=10)
    return logits - np.log(np.exp(logits).sum())


@settings(max_examples=200)
@given(answers=st.lists(WORDS, min_size=1, max_size=20))
def test_joint_log_probabilities_are_sums_along_the_answers(answers):
    trie = AnswerTrie(answers)
    reads = [
        log_probs_after(prefix)[children]
        for prefix, children in zip(trie.prefixes, trie.children, strict=True)
    ]
    for answer, joint in zip(answers, trie.join(reads), strict=True):
        alone = sum(log_probs_after(answer[:i])[token] for i, token in enumerate(answer))
        assert joint == pytest.approx(alone - np.log(answers.count(answer)))
    assert np.exp(trie.join(reads)).sum() <= 1.0 + 1e-9
    beginnings = {answer[:i] for answer in answers for i in range(len(answer))}
    assert sorted(trie.prefixes) == sorted(beginnings), "a place is read twice, or for nothing"
    for node, prefix in enumerate(trie.prefixes[1:], start=1):
        assert trie.parents[node] < node and trie.prefixes[trie.parents[node]] == prefix[:-1]


@pytest.mark.parametrize("answers", [[()], [(1, 2), (1,)], [(1,), (1, 2)]])
def test_an_answer_that_begins_another_one_is_refused(answers):
    with pytest.raises(ValueError, match="empty or the beginning of another one"):
        AnswerTrie(answers)

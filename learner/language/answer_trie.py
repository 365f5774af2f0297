"""Answers of several tokens as a tree, so that each token's probability is read once.

The probability of an answer is the product of its tokens' along the path from the root. Answers
that begin alike share the beginning, and all reads share the prompt.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

Value = TypeVar("Value")  # of a log-probability: a NumPy or a torch scalar


class AnswerTrie:
    """K answers, none of which begins another one.

    prefixes: per inner node the tokens so far; the root, (), first, parents before children
    parents:  per inner node its parent's index; -1 for the root
    children: per inner node the tokens that may come next
    """

    def __init__(self, answers: Sequence[tuple[int, ...]]) -> None:
        """ValueError if an answer is empty or the beginning of another one."""
        self.prefixes: list[tuple[int, ...]] = [()]
        self.parents = [-1]
        self.children: list[list[int]] = [[]]
        self._paths: list[list[tuple[int, int]]] = []
        index = {(): 0}
        for answer in answers:
            path, node = [], 0
            for depth, token in enumerate(answer):
                prefix = answer[:depth]
                if prefix not in index:
                    index[prefix] = len(self.prefixes)
                    self.prefixes.append(prefix)
                    self.parents.append(node)
                    self.children.append([])
                node = index[prefix]
                if token not in self.children[node]:
                    self.children[node].append(token)
                path.append((node, self.children[node].index(token)))
            self._paths.append(path)
        for answer in answers:
            if answer in index:
                raise ValueError(f"answer {answer} is empty or the beginning of another one")
        # Equal answers share their probability.
        counts = Counter(answers)
        self._log_counts = [math.log(counts[answer]) for answer in answers]

    def join(self, reads: Sequence[Sequence[Value]]) -> list[Value]:
        """[K] log-probabilities of the answers, from those of `children` of every inner node."""
        return [
            sum(reads[node][child] for node, child in path) - log_count
            for path, log_count in zip(self._paths, self._log_counts, strict=True)
        ]

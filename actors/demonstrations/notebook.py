"""Writes down what was done in which state, as the language learner reads it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from learner.language.prompt import check_texts, mask_options
from replay_service.targets import TextBatch


class Notebook:
    """One demonstration after the other, all with the same A actions."""

    def __init__(self) -> None:
        self._prompts: list[str] = []
        self._options: list[tuple[str, ...]] = []
        self._actions: list[int] = []

    def __len__(self) -> int:
        return len(self._prompts)

    def add(
        self, prompt: str, texts: Sequence[str], legal: NDArray[np.bool_] | None, action: int
    ) -> None:
        """In the state `prompt` with these A action texts, `action` was right.

        Raises ValueError for texts that can't be asked about.
        """
        options = mask_options(texts, legal)
        check_texts(prompt, options)
        self._prompts.append(prompt)
        self._options.append(options)
        self._actions.append(action)

    def as_batch(self) -> TextBatch:
        """All of them; the whole share is on the action that was right."""
        actions = torch.tensor(self._actions, dtype=torch.int64)
        n_actions = len(self._options[0]) if self._options else 0
        policy = torch.zeros(len(actions), n_actions)
        if len(actions):
            policy[torch.arange(len(actions)), actions] = 1.0
        return TextBatch(tuple(self._prompts), tuple(self._options), policy, actions)

"""What a batch of stored states teaches: questions, and the search's answers to them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from learner.language.losses import NEEDS_ADVANTAGES, Lesson, LossConfig
from learner.language.prompt import PromptBuilder, ScoringPrompt
from replay_service.targets import TextBatch

N_VARIANTS = 64  # ways to deal labels in training, so that no label comes to mean an action


@dataclass(frozen=True, slots=True)
class Example:
    """One supervised state, and what search says about its K options."""

    prompt: ScoringPrompt
    lesson: Lesson


def usable_rows(batch: TextBatch) -> list[int]:
    """The states with a prompt, at least two options, and finite shares on them."""
    usable = []
    policies = torch.as_tensor(batch.policy, dtype=torch.float32)
    for row, (prompt, options) in enumerate(zip(batch.prompt, batch.options, strict=True)):
        # One option teaches nothing; an option text "" was not legal.
        listed = [action for action, text in enumerate(options) if text.strip()]
        if not prompt or len(listed) < 2:
            continue
        shares = policies[row, listed]
        if torch.isfinite(shares).all() and shares.sum() > 0:
            usable.append(row)
    return usable


def read_examples(
    batch: TextBatch, builder: PromptBuilder, rng: np.random.Generator, config: LossConfig
) -> list[Example]:
    """The states that can be learnt from, on the host; advantages are as they were stored.

    Left out are states with one option, without shares on those that are listed, and for awr and
    ppo those where something else was played. Raises RuntimeError if the loss needs advantages and
    replay does not keep them: it would learn nothing, in silence.
    """
    if config.name in NEEDS_ADVANTAGES and batch.advantage is None:
        raise RuntimeError(
            f"language.loss.name={config.name} needs the advantages that search found, which "
            "replay does not keep; set replay.advantages to true, or use sft"
        )
    examples: list[Example] = []
    policies = torch.as_tensor(batch.policy, dtype=torch.float32)
    for row in usable_rows(batch):
        variant = int(rng.integers(N_VARIANTS))
        scoring = builder.build(batch.prompt[row], batch.options[row], variant=variant)
        actions = list(scoring.actions)
        shares = policies[row, actions]
        lesson = Lesson(shares / shares.sum())
        if config.name != "sft":
            action = int(batch.action[row])
            played = actions.index(action) if action in actions else -1
            if played < 0 and config.name != "rft":
                continue
            lesson = replace(lesson, advantage=batch.advantage[row, actions], played=played)
        examples.append(Example(scoring, lesson))
    return examples

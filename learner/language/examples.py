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
    for row, (prompt, options) in enumerate(zip(batch.prompt, batch.options, strict=True)):
        # One option teaches nothing; an option text "" was not legal.
        if not prompt or sum(1 for text in options if text.strip()) < 2:
            continue
        scoring = builder.build(prompt, options, variant=int(rng.integers(N_VARIANTS)))
        actions = list(scoring.actions)
        shares = policies[row, actions]
        if not torch.isfinite(shares).all() or shares.sum() <= 0:
            continue
        lesson = Lesson(shares / shares.sum())
        if config.name != "sft":
            action = int(batch.action[row])
            played = actions.index(action) if action in actions else -1
            if played < 0 and config.name != "rft":
                continue
            lesson = replace(lesson, advantage=batch.advantage[row, actions], played=played)
        examples.append(Example(scoring, lesson))
    return examples

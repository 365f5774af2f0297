"""How well a language model answers states whose answers are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.language.examples import Example
from learner.language.losses import LossConfig, language_losses
from learner.language.prompt import ScoreRequest


@dataclass(frozen=True, slots=True)
class Measurement:
    """Over `n` states; all but the counts are means, 0 without a state.

    tokens:    those that say options with a share above 0, added up
    loss:      as trained on
    log_prob:  of the demonstrated options among all options of a state, in nats
    agreement: how often the likeliest option is one with the largest share
    chance:    how often guessing would be
    """

    n: int
    tokens: int
    loss: float
    log_prob: float
    agreement: float
    chance: float


@torch.no_grad()
def measure(
    log_probs: Callable[[Sequence[ScoreRequest]], list[Tensor]],
    examples: Sequence[Example],
    size: int,
    config: LossConfig,
) -> Measurement:
    """`log_probs` reads `size` questions at a time."""
    loss = log_prob = agreement = chance = 0.0
    tokens = 0
    for start in range(0, len(examples), size):
        part = examples[start : start + size]
        rows = [row.cpu() for row in log_probs([e.prompt.request for e in part])]
        loss += float(language_losses(rows, [e.lesson for e in part], config)[0])
        for row, example in zip(rows, part, strict=True):
            shares = example.lesson.shares
            is_best = shares == shares.max()
            log_prob += float((shares * row.log_softmax(0)).sum())
            agreement += float(is_best[row.argmax()])
            chance += float(is_best.float().mean())
            answers = zip(example.prompt.request.answers, shares, strict=True)
            tokens += sum(len(answer) for answer, share in answers if share > 0)
    n = max(len(examples), 1)
    return Measurement(len(examples), tokens, loss / n, log_prob / n, agreement / n, chance / n)

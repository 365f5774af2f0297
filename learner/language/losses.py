"""Losses of the language learner: what search found against the model's own distribution.

The model's distribution q over the K options of a state is the softmax of their log-probabilities.
All options are enumerated, so nothing is sampled and every expectation is exact. Every loss adds
`mass_weight * -log(sum of the options' probabilities)`, which keeps probability on legal answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from torch import Tensor

LossName = Literal["sft", "rft", "awr", "ppo"]
NEEDS_ADVANTAGES = ("rft", "awr", "ppo")

ADVANTAGE_FLOOR = 1e-3  # of the scale that advantages are divided by, in units of return
ADVANTAGE_CLIP = 4.0  # scales
LARGEST_WEIGHT = 20.0  # of a state in advantage-weighted regression


@dataclass(frozen=True, slots=True)
class LossConfig:
    """Which loss, and its constants."""

    # sft imitates visits; rft, awr and ppo follow what search found each action worth, and need
    # replay.advantages
    name: LossName = "sft"
    mass_weight: float = 0.1  # keeps probability on the options; with sft, 1 is visit-weighted NLL
    kl_weight: float = 0.1  # how strongly the model as loaded holds rft, awr and ppo back
    awr_temperature: float = 1.0  # in advantage scales; lower weighs the best actions more
    ppo_clip: float = 0.2  # largest change of a probability ratio that ppo rewards

    def __post_init__(self) -> None:
        names = get_args(LossName)
        if self.name not in names:
            raise ValueError(f"name must be one of {', '.join(names)}, got {self.name!r}")
        for name in ("mass_weight", "kl_weight"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0.0 < self.awr_temperature < math.inf:
            raise ValueError(f"awr_temperature must be positive, got {self.awr_temperature}")
        if not 0.0 < self.ppo_clip < 1.0:
            raise ValueError(f"ppo_clip must lie in (0, 1), got {self.ppo_clip}")


@dataclass(frozen=True, slots=True)
class Lesson:
    """What search says about the K options of one state.

    shares:    [K] visit shares, summing to 1
    advantage: [K] in scales (see `scaled_advantages`), or None for sft
    played:    which option was played, -1 if none of them
    reference: [K] log q of the reference model, or None for sft
    old:       [K] log q before the updates on this batch, for ppo
    """

    shares: Tensor
    advantage: Tensor | None = None
    played: int = -1
    reference: Tensor | None = None
    old: Tensor | None = None

    def to(self, device: torch.device) -> Lesson:
        """The same on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return Lesson(**{n: v.to(device) if isinstance(v, Tensor) else v for n, v in moved.items()})


def scaled_advantages(advantages: Sequence[Tensor]) -> list[Tensor]:
    """Advantages of all options of a batch over their root mean square, clipped."""
    scale = torch.cat(list(advantages)).square().mean().sqrt().clamp(min=ADVANTAGE_FLOOR)
    return [(a / scale).clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP) for a in advantages]


def language_losses(
    log_probs: Sequence[Tensor], lessons: Sequence[Lesson], config: LossConfig
) -> tuple[Tensor, dict[str, float]]:
    """The losses added up over the examples, and so kl, entropy, label_mass and kl_reference.

    log_probs: per example [K], full-vocabulary joint log-probabilities of the options

    sft: cross-entropy of q against the visit shares.
    rft: -sum_a q(a) A(a), the policy gradient in expectation over all options.
    awr: -min(exp(A / temperature), LARGEST_WEIGHT) log q of what was played (Peng et al. 2019).
    ppo: -min(r A, clip(r) A) of what was played, r = q / q before the batch (Schulman et al. 2017).
    The last three add `kl_weight` times the exact KL(q || reference).
    """
    total = torch.zeros((), device=log_probs[0].device, dtype=log_probs[0].dtype)
    sums = {"kl": 0.0, "entropy": 0.0, "label_mass": 0.0, "kl_reference": 0.0}
    for scores, lesson in zip(log_probs, lessons, strict=True):
        log_mass = scores.logsumexp(0)
        log_q = scores - log_mass
        kl_reference = torch.zeros_like(log_mass)
        if lesson.reference is not None:
            kl_reference = (log_q.exp() * (log_q - lesson.reference)).sum()
        total = total + _teach(log_q, lesson, config) - config.mass_weight * log_mass
        if config.name != "sft":
            total = total + config.kl_weight * kl_reference
        with torch.no_grad():
            shares = lesson.shares
            sums["kl"] += float((torch.special.xlogy(shares, shares) - shares * log_q).sum())
            sums["entropy"] += float(-(log_q.exp() * log_q).sum())
            sums["label_mass"] += float(log_mass.exp())
            sums["kl_reference"] += float(kl_reference)
    return total, sums


def _teach(log_q: Tensor, lesson: Lesson, config: LossConfig) -> Tensor:
    if config.name == "sft":
        return -(lesson.shares * log_q).sum()
    advantage, played = lesson.advantage, lesson.played
    assert advantage is not None, "examples without advantages are left out before"
    if config.name == "rft":
        return -(log_q.exp() * advantage).sum()
    if config.name == "awr":
        weight = (advantage[played] / config.awr_temperature).exp().clamp(max=LARGEST_WEIGHT)
        return -weight * log_q[played]
    assert lesson.old is not None
    ratio = (log_q[played] - lesson.old[played]).exp()
    clipped = ratio.clamp(1.0 - config.ppo_clip, 1.0 + config.ppo_clip)
    return -torch.minimum(ratio * advantage[played], clipped * advantage[played])

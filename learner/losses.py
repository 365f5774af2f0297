"""Losses of the world model, one number a sample, so that importance weights scale gradients.

Every loss is a mean over the sample's valid steps. All arithmetic is float32 or wider, also where
the network ran in bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from learner.world_model.config import SIMNORM_GROUP
from learner.world_model.support import Support
from learner.world_model.world_model import ModelOutput

_ILLEGAL_LOGIT = -1e9  # finite: a zero share times minus infinity would be NaN
_SMALLEST_SHARE = 1e-6  # floor of a predicted latent share inside the logarithm


@dataclass(frozen=True, slots=True)
class LossTargets:
    """What H steps of B samples should predict; no gradient flows into any of it.

    value:  [B, H] float32, n-step return with the target network's bootstrap
    reward: [B, H] float32
    policy: [B, H, A] float32, all-zero rows are no target
    latent: [B, H, E] target encoder's latent of the observation after each action
    valid:  [B, H] bool, steps that count
    legal:  [B, H, A] bool or None
    """

    value: Tensor
    reward: Tensor
    policy: Tensor
    latent: Tensor
    valid: Tensor
    legal: Tensor | None = None


@dataclass(frozen=True, slots=True)
class SampleLosses:
    """Unweighted losses, each [B] float32; `entropy` is a bonus, the others are costs."""

    policy: Tensor
    value: Tensor
    reward: Tensor
    latent: Tensor
    entropy: Tensor


def sample_losses(output: ModelOutput, targets: LossTargets, support: Support) -> SampleLosses:
    """Losses of a window's H observation positions and H actions."""
    log_policy = _log_policy(output.policy_logits, targets.legal)
    has_policy = targets.valid & (targets.policy.sum(-1) > 0)
    value = _cross_entropy(support.two_hot(targets.value), output.value_logits)
    reward = _cross_entropy(support.two_hot(targets.reward), output.reward_logits)
    entropy = -(log_policy.exp() * log_policy).sum(-1)
    return SampleLosses(
        policy=masked_mean(-(targets.policy * log_policy).sum(-1), has_policy),
        value=masked_mean(value, targets.valid),
        reward=masked_mean(reward, targets.valid),
        latent=masked_mean(latent_divergence(output.next_latent, targets.latent), targets.valid),
        entropy=masked_mean(entropy, has_policy),
    )


def at_least_float32(x: Tensor) -> Tensor:
    """For sums: half precision widened, float64 left as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean [B] of x [B, H] over the steps in `mask`; 0 for samples without any."""
    return torch.where(mask, x, 0.0).sum(1) / mask.sum(1).clamp(min=1)


def latent_divergence(predicted: Tensor, target: Tensor) -> Tensor:
    """Kullback-Leibler divergence [...] of SimNorm latents [..., E], mean over their groups."""
    predicted, target = at_least_float32(predicted), at_least_float32(target)
    log_ratio = target.clamp(min=_SMALLEST_SHARE).log() - predicted.clamp(min=_SMALLEST_SHARE).log()
    return (target * log_ratio).sum(-1) * (SIMNORM_GROUP / target.shape[-1])


def _cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    return -(target * functional.log_softmax(at_least_float32(logits), dim=-1)).sum(-1)


def _log_policy(logits: Tensor, legal: Tensor | None) -> Tensor:
    logits = at_least_float32(logits)
    if legal is not None:
        logits = logits.masked_fill(~legal, _ILLEGAL_LOGIT)
    return functional.log_softmax(logits, dim=-1)

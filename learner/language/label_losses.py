"""The loss of the language learner: visit shares against the model's distribution over labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def label_losses(
    log_probs: Sequence[Tensor], targets: Sequence[Tensor], mass_weight: float
) -> tuple[Tensor, dict[str, float]]:
    """Sum over the examples of: cross-entropy over labels - mass_weight * log(label mass).

    log_probs: per example [K], full-vocabulary; targets: per example [K] summing to 1.
    Also returns the sums of kl, entropy and label_mass.
    """
    total = torch.zeros((), device=log_probs[0].device)
    sums = {"kl": 0.0, "entropy": 0.0, "label_mass": 0.0}
    for scores, target in zip(log_probs, targets, strict=True):
        log_mass = scores.logsumexp(0)
        log_q = scores - log_mass
        cross_entropy = -(target * log_q).sum()
        total = total + cross_entropy - mass_weight * log_mass
        with torch.no_grad():
            sums["kl"] += float(cross_entropy + torch.special.xlogy(target, target).sum())
            sums["entropy"] += float(-(log_q.exp() * log_q).sum())
            sums["label_mass"] += float(log_mass.exp())
    return total, sums

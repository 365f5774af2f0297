"""What one update measures: its metrics and the errors that become priorities."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.losses import LossTargets, SampleLosses
from replay_service.targets import Batch


def measure(
    loss: Tensor,
    norm: Tensor,
    losses: SampleLosses,
    value: Tensor,
    targets: LossTargets,
    batch: Batch,
) -> tuple[dict[str, Tensor], Tensor]:
    """Metrics, and the mean |value - target| [B] over each sample's valid steps."""
    mask = targets.valid
    n_valid = mask.sum().clamp(min=1)
    errors = torch.where(mask, (value - targets.value).abs(), 0.0)
    priorities = errors.sum(1) / mask.sum(1).clamp(min=1)
    columns = {
        "loss_total": loss,
        "loss_policy": losses.policy.mean(),
        "loss_value": losses.value.mean(),
        "loss_reward": losses.reward.mean(),
        "loss_latent": losses.latent.mean(),
        "entropy": losses.entropy.mean(),
        "grad_norm": norm,
        "value_mean": torch.where(mask, value, 0.0).sum() / n_valid,
        "value_target_mean": torch.where(mask, targets.value, 0.0).sum() / n_valid,
        "value_error": errors.sum() / n_valid,
        "reanalysed_share": (batch.target_version > batch.weight_version).float().mean(),
    }
    return columns, priorities


def download(columns: dict[str, Tensor]) -> dict[str, float]:
    """Numbers of one-element tensors, by one transfer."""
    numbers = torch.stack([column.detach().float() for column in columns.values()]).tolist()
    return dict(zip(columns, numbers, strict=True))

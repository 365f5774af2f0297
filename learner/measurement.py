"""What one update measures: its metrics and the errors that become priorities.

A batch may be worked through in several parts, so that activations of one part at a time are in
memory; what is measured is of the whole batch all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from learner.losses import LossTargets, SampleLosses
from learner.world_model import ModelOutput
from replay_service.targets import Batch


@dataclass(frozen=True, slots=True)
class Measured:
    """What is kept of the forward pass over B samples, without a graph.

    loss: [], what was differentiated; losses: each [B]; value, target, valid: [B, H]
    largest_output: [], of all heads, by its absolute value
    """

    loss: Tensor
    losses: SampleLosses
    value: Tensor
    target: Tensor
    valid: Tensor
    largest_output: Tensor

    def to(self, device: torch.device | str) -> Measured:
        losses = {f.name: getattr(self.losses, f.name).to(device) for f in fields(SampleLosses)}
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {name: v.to(device) for name, v in own.items() if isinstance(v, Tensor)}
        return Measured(losses=SampleLosses(**losses), **moved)


def split(batch: Batch, n_parts: int) -> list[Batch]:
    """At most `n_parts` parts of nearly equal length, each with the handles of the whole."""
    if n_parts == 1:
        return [batch]
    columns = {
        field.name: torch.tensor_split(value, min(n_parts, len(batch)))
        for field in fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    }
    return [
        replace(batch, **dict(zip(columns, values, strict=True)))
        for values in zip(*columns.values(), strict=True)
    ]


def kept(
    loss: Tensor, losses: SampleLosses, value: Tensor, targets: LossTargets, output: ModelOutput
) -> Measured:
    """Of one part."""
    heads = (output.policy_logits, output.value_logits, output.reward_logits, output.next_latent)
    largest = torch.stack([head.detach().abs().amax().float() for head in heads]).amax()
    columns = {field.name: getattr(losses, field.name).detach() for field in fields(losses)}
    return Measured(
        loss.detach(), SampleLosses(**columns), value, targets.value, targets.valid, largest
    )


def join(parts: Sequence[Measured]) -> Measured:
    """Of the whole batch."""
    losses = {
        field.name: torch.cat([getattr(part.losses, field.name) for part in parts])
        for field in fields(SampleLosses)
    }
    return Measured(
        torch.stack([part.loss for part in parts]).sum(),
        SampleLosses(**losses),
        torch.cat([part.value for part in parts]),
        torch.cat([part.target for part in parts]),
        torch.cat([part.valid for part in parts]),
        torch.stack([part.largest_output for part in parts]).amax(),
    )


def measure(measured: Measured, norm: Tensor, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """Metrics, and the mean |value - target| [B] over each sample's valid steps."""
    mask, losses = measured.valid, measured.losses
    n_valid = mask.sum().clamp(min=1)
    errors = torch.where(mask, (measured.value - measured.target).abs(), 0.0)
    priorities = errors.sum(1) / mask.sum(1).clamp(min=1)
    columns = {
        "loss_total": measured.loss,
        "loss_policy": losses.policy.mean(),
        "loss_value": losses.value.mean(),
        "loss_reward": losses.reward.mean(),
        "loss_latent": losses.latent.mean(),
        "entropy": losses.entropy.mean(),
        "grad_norm": norm,
        "value_mean": torch.where(mask, measured.value, 0.0).sum() / n_valid,
        "value_target_mean": torch.where(mask, measured.target, 0.0).sum() / n_valid,
        "value_error": errors.sum() / n_valid,
        "reanalysed_share": (batch.target_version > batch.weight_version).float().mean(),
    }
    return columns, priorities


def download(columns: dict[str, Tensor]) -> dict[str, float]:
    """Numbers of one-element tensors, by one transfer."""
    numbers = torch.stack([column.detach().float() for column in columns.values()]).tolist()
    return dict(zip(columns, numbers, strict=True))

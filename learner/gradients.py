"""One batch through both networks and back: what an update learns from, before it changes anything.

Without optimizer, counters or randomness, so that the ranks of a parallel learner run it as well.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from learner.config import LearnerConfig
from learner.losses import LossTargets, SampleLosses, at_least_float32, sample_losses
from learner.measurement import Measured, join, kept, split
from learner.world_model import ModelOutput, WorldModel
from replay_service.targets import Batch, TargetConfig


class Gradients(Protocol):
    """Where a learner gets the gradient of a batch from."""

    def add(
        self, batch: Batch, n_samples: int, n_real: int, entropy_scale: float = 1.0
    ) -> Measured: ...

    def close(self) -> None: ...


class LocalGradients:
    """Computes with the two networks that it is given, on their device."""

    def __init__(
        self,
        config: LearnerConfig,
        targets: TargetConfig,
        model: WorldModel,
        target_model: WorldModel,
        device: torch.device,
    ) -> None:
        self._config = config
        self._targets = targets
        self._model = model
        self._target_model = target_model
        self._device = device

    def add(
        self, batch: Batch, n_samples: int, n_real: int, entropy_scale: float = 1.0
    ) -> Measured:
        """Adds the gradient of the samples in `batch`, of `n_samples` in all, to the model's.

        n_real: leading observations that are given as real ones; the others are imagined
        entropy_scale: what the weight of entropy is multiplied by
        """
        parts = split(batch, self._config.accumulate)
        return join([self._add_part(part, n_samples, n_real, entropy_scale) for part in parts])

    def close(self) -> None:
        """Nothing was started."""

    def _add_part(self, part: Batch, n_samples: int, n_real: int, entropy_scale: float) -> Measured:
        uses_bf16 = self._config.bf16 and self._device.type == "cuda"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=uses_bf16):
            targets = self.loss_targets(part)
            output = self._predict(part, n_real)
        losses = sample_losses(output, targets, self._model.support)
        loss = (part.importance * self._weigh(losses, entropy_scale)).sum() / n_samples
        loss.backward()
        with torch.no_grad():
            value = self._model.support.decode(at_least_float32(output.value_logits))
        return kept(loss, losses, value, targets, output)

    def _predict(self, batch: Batch, n_real: int) -> ModelOutput:
        n_unroll = self._targets.unroll_steps
        real = batch.obs[:, :n_real]
        latents = self._model.encode(real.flatten(0, 1)).unflatten(0, real.shape[:2])
        return self._model.imagine(latents, batch.action[:, :n_unroll])

    @torch.no_grad()
    def loss_targets(self, batch: Batch) -> LossTargets:
        """The target network over the whole window: bootstrap values and next latents."""
        latents = self._target_model.encode(batch.obs.flatten(0, 1))
        latents = latents.unflatten(0, batch.obs.shape[:2])
        values = self._target_model.values(latents, batch.action)
        bootstrap = values.gather(1, batch.bootstrap_index)
        return LossTargets(
            value=batch.n_step_return + batch.bootstrap_discount * bootstrap,
            reward=batch.reward,
            policy=batch.policy,
            latent=latents[:, 1 : self._targets.unroll_steps + 1],
            valid=batch.valid,
            legal=batch.legal,
        )

    def _weigh(self, losses: SampleLosses, entropy_scale: float) -> Tensor:
        config = self._config
        return (
            config.policy_weight * losses.policy
            + config.value_weight * losses.value
            + config.reward_weight * losses.reward
            + config.latent_weight * losses.latent
            - config.entropy_weight * entropy_scale * losses.entropy
        )

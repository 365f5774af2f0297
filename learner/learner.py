"""Trains the world model: targets, one optimizer step a batch, publication, saving.

Runs in one thread of one process; knows nothing of Ray. An update costs one pass over the target
network and, for a seam at R real steps, 1 + H - R passes over the model being trained.
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.checkpoint import LearnerCounters, load_learner, save_learner
from learner.config import LearnerConfig
from learner.losses import LossTargets, SampleLosses, sample_losses
from learner.partial_restore import FileMatch, load_matching
from learner.weights import NO_VERSION, Weights, WeightSink, snapshot_weights
from learner.world_model import ModelOutput, WorldModel, WorldModelConfig
from replay_service.batch_source import BatchSource
from replay_service.segment import GameSpec
from replay_service.targets import Batch, TargetConfig


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What `n_updates` updates did.

    metrics: means over these updates (loss_total, loss_policy, loss_value, loss_reward,
             loss_latent, entropy, grad_norm, learning_rate, value_mean, value_target_mean,
             value_error, real_steps, reanalysed_share), and skipped_total, the count since the run
             began
    seconds: sample_wait, compute, publish; sums over these updates
    """

    n_updates: int
    metrics: dict[str, float]
    seconds: dict[str, float]


class Learner:
    """Owns model, target network, optimizer, and the version of published weights."""

    def __init__(
        self,
        config: LearnerConfig,
        model_config: WorldModelConfig,
        targets: TargetConfig,
        spec: GameSpec,
        device: str,
        seed: int,
    ) -> None:
        self.config = config
        self.targets = targets
        self.device = torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = WorldModel(model_config, spec)
        self.model.to(self.device)
        self.target_model = copy.deepcopy(self.model).requires_grad_(False)
        self.average_model = self.model  # without a mean, what is published is what is trained
        if config.averaged_share:
            self.average_model = copy.deepcopy(self.model).requires_grad_(False)
        self._rng = np.random.default_rng(seed)
        self._optimizer = make_optimizer(self.model, config, self.device)
        self._counters = LearnerCounters()

    @property
    def updates(self) -> int:
        """Batches consumed since the run began, skipped ones included."""
        return self._counters.updates

    @property
    def version(self) -> int:
        """Version that `weights()` carries now."""
        return self._counters.updates + self._counters.version_offset

    def advance_version(self, published: int) -> None:
        """Make the next published version newer than `published`; for restarts from a checkpoint.

        A restored learner repeats update counts that a surviving weight server has seen.
        """
        if published != NO_VERSION:
            self._counters.version_offset += max(0, published + 1 - self.version)

    def weights(self) -> Weights:
        """The averaged model as publishable arrays."""
        return snapshot_weights(self.average_model, self.version)

    def train(self, n_updates: int, source: BatchSource, sink: WeightSink | None) -> TrainReport:
        """Run `n_updates` updates; publishes to `sink` every `publish_every` of them.

        A batch is drawn for the first and then for every `sample_interval`-th update; the others
        train on it again, and send newer priorities for the same positions.
        """
        sums: dict[str, float] = defaultdict(float)
        seconds = {"sample_wait": 0.0, "transfer": 0.0, "compute": 0.0, "publish": 0.0}
        for i in range(n_updates):
            start = time.perf_counter()
            if i % self.config.sample_interval == 0:
                drawn = source.next()
            arrived = time.perf_counter()
            if i % self.config.sample_interval == 0:
                batch = drawn.to(self.device)
            sampled = time.perf_counter()
            metrics, priorities = self.update(batch)
            source.update_priorities(batch.handles, priorities)
            computed = time.perf_counter()
            if sink is not None and self.updates % self.config.publish_every == 0:
                sink.push(self.weights())
            seconds["sample_wait"] += arrived - start
            seconds["transfer"] += sampled - arrived
            seconds["compute"] += computed - sampled
            seconds["publish"] += time.perf_counter() - computed
            for name, value in metrics.items():
                sums[name] += value
        means = {name: total / n_updates for name, total in sums.items()}
        means["skipped_total"] = float(self._counters.skipped)
        return TrainReport(n_updates, means, seconds)

    def update(self, batch: Batch) -> tuple[dict[str, float], NDArray[np.float32]]:
        """One optimizer step; returns metrics and new priorities [B].

        A step whose loss or gradient is not finite changes no parameter and is counted. One
        synchronisation with the device for the metrics, one for the priorities.
        """
        batch = batch.to(self.device)
        rate = self._set_learning_rate()
        # The seam between real and imagined observations moves, so that heads learn both kinds of
        # latents: encoded ones at search roots, predicted ones inside the tree.
        n_real = int(self._rng.integers(1, self.config.max_real_steps(self.targets) + 1))
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._uses_bf16):
            targets = self._loss_targets(batch)
            output = self._predict(batch, n_real)
        losses = sample_losses(output, targets, self.model.support)
        loss = (batch.importance * self._weigh(losses)).mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        with torch.no_grad():
            value = self.model.support.decode(output.value_logits.float())
            metrics, priorities = _measure(loss, norm, losses, value, targets, batch)
        is_finite = bool(np.isfinite([metrics["loss_total"], metrics["grad_norm"]]).all())
        self._finish(is_finite, batch)
        return metrics | {"learning_rate": rate, "real_steps": float(n_real)}, priorities

    def save(self, folder: Path) -> None:
        """Write all models, optimizer, counters and RNG below `folder`, without pickle."""
        self._counters.rng_state = self._rng.bit_generator.state
        save_learner(
            folder,
            self.model,
            self.target_model,
            self.average_model,
            self._optimizer,
            self._counters,
        )

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote, exactly; ValueError names the file and key that do not fit."""
        self._counters = load_learner(
            folder, self.model, self.target_model, self.average_model, self._optimizer
        )
        self._rng.bit_generator.state = self._counters.rng_state

    def load_matching(self, folder: Path) -> dict[str, FileMatch]:
        """Restore what fits of a learner with another model; what became of each file's keys."""
        self._counters, matches = load_matching(
            folder, self.model, self.target_model, self.average_model, self._optimizer
        )
        self._rng.bit_generator.state = self._counters.rng_state
        return matches

    @property
    def _uses_bf16(self) -> bool:
        return self.config.bf16 and self.device.type == "cuda"

    def _predict(self, batch: Batch, n_real: int) -> ModelOutput:
        n_unroll = self.targets.unroll_steps
        real = batch.obs[:, :n_real]
        latents = self.model.encode(real.flatten(0, 1)).unflatten(0, real.shape[:2])
        return self.model.imagine(latents, batch.action[:, :n_unroll])

    @torch.no_grad()
    def _loss_targets(self, batch: Batch) -> LossTargets:
        """The target network over the whole window: bootstrap values and next latents."""
        latents = self.target_model.encode(batch.obs.flatten(0, 1))
        latents = latents.unflatten(0, batch.obs.shape[:2])
        values = self.target_model.values(latents, batch.action)
        bootstrap = values.gather(1, batch.bootstrap_index)
        return LossTargets(
            value=batch.n_step_return + batch.bootstrap_discount * bootstrap,
            reward=batch.reward,
            policy=batch.policy,
            latent=latents[:, 1 : self.targets.unroll_steps + 1],
            valid=batch.valid,
            legal=batch.legal,
        )

    def _weigh(self, losses: SampleLosses) -> Tensor:
        config = self.config
        return (
            config.policy_weight * losses.policy
            + config.value_weight * losses.value
            + config.reward_weight * losses.reward
            + config.latent_weight * losses.latent
            - config.entropy_weight * losses.entropy
        )

    def _set_learning_rate(self) -> float:
        rate = self.config.learning_rate_at(self.updates)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _finish(self, is_finite: bool, batch: Batch) -> None:
        self._counters.updates += 1
        if not is_finite:
            self._counters.skipped += 1
            return
        self._optimizer.step()
        self.model.adapt_inputs(batch.obs)
        follow(self.target_model, self.model, self.config.target_momentum)
        if self.average_model is not self.model:
            momentum = self.config.average_momentum_at(self.updates)
            follow(self.average_model, self.model, momentum)


@torch.no_grad()
def follow(follower: WorldModel, model: WorldModel, momentum: float) -> None:
    """Move the parameters of `follower` by the share `momentum` towards `model`; copy buffers."""
    for target, buffer in zip(follower.buffers(), model.buffers(), strict=True):
        target.copy_(buffer)
    torch._foreach_lerp_(list(follower.parameters()), list(model.parameters()), momentum)


def make_optimizer(
    model: WorldModel, config: LearnerConfig, device: torch.device
) -> torch.optim.AdamW:
    """AdamW that decays matrices only; one fused kernel a step on CPU and CUDA."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


def _measure(
    loss: Tensor,
    norm: Tensor,
    losses: SampleLosses,
    value: Tensor,
    targets: LossTargets,
    batch: Batch,
) -> tuple[dict[str, float], NDArray[np.float32]]:
    """Metrics by one transfer, and the mean |value - target| over each sample's valid steps."""
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
    numbers = torch.stack([column.detach().float() for column in columns.values()]).tolist()
    return dict(zip(columns, numbers, strict=True)), priorities.float().cpu().numpy()

"""Trains the world model: targets, one optimizer step a batch, publication, saving.

Runs in one thread of one process; knows nothing of Ray. An update costs one pass over the target
network and, for a seam at R real steps, 1 + H - R passes over the model being trained.
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.bad_numbers import BadBatches, BadStep, columns_not_finite, finite_checks
from learner.checkpoint import LearnerCounters, load_learner, save_learner
from learner.config import LearnerConfig
from learner.health import HealthWatch
from learner.losses import LossTargets, SampleLosses, at_least_float32, sample_losses
from learner.measurement import Measured, download, join, kept, measure, split
from learner.partial_restore import FileMatch, load_matching
from learner.weights import NO_VERSION, Weights, WeightSink, snapshot_weights
from learner.world_model import ModelOutput, WorldModel, WorldModelConfig
from replay_service.batch_source import BatchSource
from replay_service.segment import GameSpec
from replay_service.targets import Batch, TargetConfig


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What `n_updates` updates did.

    metrics: means over those that were finite, or of the last if none was (loss_total,
             loss_policy, loss_value, loss_reward, loss_latent, entropy, grad_norm, learning_rate,
             value_mean, value_target_mean, value_error, real_steps, reanalysed_share);
             skipped_total, the count since the run began; and what the newest look at the
             network's health found
    seconds: sample_wait, transfer, compute, publish; sums over these updates
    bad_steps: those that were not finite
    last_update: the learner's count of updates at the end; a roll-back turns it back
    n_bad_in_a_row: how many of the newest updates were not finite, with those of earlier calls
    """

    n_updates: int
    metrics: dict[str, float]
    seconds: dict[str, float]
    bad_steps: tuple[BadStep, ...] = ()
    last_update: int = 0
    n_bad_in_a_row: int = 0


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
        bad_batches: BadBatches | None = None,
    ) -> None:
        """bad_batches: takes the batches of updates that are not finite."""
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
        self._bad_batches = bad_batches
        self._bad_steps: list[BadStep] = []  # of the train call that runs
        self._n_bad_in_a_row = 0
        self._learning_rate_scale = 1.0  # of the train call that runs, beside the schedule

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

    def train(
        self,
        n_updates: int,
        source: BatchSource,
        sink: WeightSink | None,
        *,
        learning_rate_scale: float = 1.0,
    ) -> TrainReport:
        """Run `n_updates` updates; publishes to `sink` every `publish_every` of them.

        A batch is drawn for the first and then for every `sample_interval`-th update; the others
        train on it again, and send newer priorities for the same positions. Nothing is published
        right after an update that was not finite: what is wrong may be the weights.
        """
        self._bad_steps = []
        self._learning_rate_scale = learning_rate_scale
        sums: dict[str, float] = defaultdict(float)
        seconds = {"sample_wait": 0.0, "transfer": 0.0, "compute": 0.0, "publish": 0.0}
        for i in range(n_updates):
            if i % self.config.sample_interval == 0:
                start = time.perf_counter()
                drawn = source.next()
                arrived = time.perf_counter()
                batch = drawn.to(self.device)
                seconds["sample_wait"] += arrived - start
                seconds["transfer"] += time.perf_counter() - arrived
            sampled = time.perf_counter()
            metrics, priorities = self.update(batch)
            source.update_priorities(batch.handles, priorities)
            computed = time.perf_counter()
            is_due = self.updates % self.config.publish_every == 0
            if sink is not None and is_due and not self._n_bad_in_a_row:
                sink.push(self.weights())
            seconds["compute"] += computed - sampled
            seconds["publish"] += time.perf_counter() - computed
            if not self._n_bad_in_a_row:
                for name, value in metrics.items():
                    sums[name] += value
        n_finite = n_updates - len(self._bad_steps)
        means = {name: total / n_finite for name, total in sums.items()} or dict(metrics)
        means |= {"skipped_total": float(self._counters.skipped), **self._counters.watched}
        return TrainReport(
            n_updates,
            means,
            seconds,
            tuple(self._bad_steps),
            self.updates,
            self._n_bad_in_a_row,
        )

    def update(self, batch: Batch) -> tuple[dict[str, float], NDArray[np.float32]]:
        """One optimizer step; returns metrics and new priorities [B].

        A step whose loss, gradient, priorities, outputs or observations are not all finite changes
        no parameter, is counted, and its batch is kept. One synchronisation with the device for
        the metrics, one for the priorities, some more when the network's health is looked at.
        """
        batch = batch.to(self.device)
        rate = self._set_learning_rate()
        # The seam between real and imagined observations moves, so that heads learn both kinds of
        # latents: encoded ones at search roots, predicted ones inside the tree.
        n_real = int(self._rng.integers(1, self.config.max_real_steps(self.targets) + 1))
        self.model.train()
        is_watched = self.updates % self.config.watch_every == 0
        watch = HealthWatch(self.model) if is_watched else None
        self._optimizer.zero_grad(set_to_none=True)
        with watch or nullcontext():
            parts = [
                self._accumulate(part, len(batch), n_real)
                for part in split(batch, self.config.accumulate)
            ]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        measured = join(parts)
        columns, errors = measure(measured, norm, batch)
        checks = finite_checks(batch, measured, norm, errors)
        numbers = download(columns | checks)
        metrics = {name: numbers[name] for name in columns}
        not_finite = tuple(name for name in checks if not np.isfinite(numbers[name]))
        if not_finite:
            self._skip(batch, n_real, not_finite, numbers)
        else:
            self._finish(batch)
            if watch is not None:
                self._counters.watched = watch.figures()
        priorities = errors.float().cpu().numpy()
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
        self._n_bad_in_a_row = 0

    def roll_back(self, folder: Path) -> None:
        """`load`, but updates that were skipped since stay counted."""
        n_skipped = self._counters.skipped
        self.load(folder)
        self._counters.skipped = n_skipped

    def is_finite(self) -> bool:
        """Whether all that `save` writes is free of NaN and infinity; waits for the device."""
        tensors = [
            *self.model.state_dict().values(),
            *self.target_model.state_dict().values(),
            *self.average_model.state_dict().values(),
            *(value for state in self._optimizer.state.values() for value in state.values()),
        ]
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)

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

    def _accumulate(self, part: Batch, n_samples: int, n_real: int) -> Measured:
        """Adds the gradient of the samples in `part`, of `n_samples` in the batch."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._uses_bf16):
            targets = self._loss_targets(part)
            output = self._predict(part, n_real)
        losses = sample_losses(output, targets, self.model.support)
        loss = (part.importance * self._weigh(losses)).sum() / n_samples
        loss.backward()
        with torch.no_grad():
            value = self.model.support.decode(at_least_float32(output.value_logits))
        return kept(loss, losses, value, targets, output)

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
        rate = self.config.learning_rate_at(self.updates) * self._learning_rate_scale
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _skip(
        self, batch: Batch, n_real: int, not_finite: tuple[str, ...], numbers: dict[str, float]
    ) -> None:
        file = ""
        # Those after it in a row meet the same weights, and would push the first one's file out.
        if self._bad_batches is not None and not self._n_bad_in_a_row:
            file = self._bad_batches.save(
                batch, update=self.updates, version=self.version, n_real=n_real, numbers=numbers
            )
        causes = not_finite + columns_not_finite(batch)
        self._bad_steps.append(BadStep(self.updates, causes, file))
        self._n_bad_in_a_row += 1
        self._counters.skipped += 1
        self._counters.updates += 1

    def _finish(self, batch: Batch) -> None:
        self._n_bad_in_a_row = 0
        self._counters.updates += 1
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

"""Settings of the learner."""

from __future__ import annotations

import math
from dataclasses import dataclass

from replay_service.targets import TargetConfig

FINAL_RATE = 0.1  # share of the learning rate that a decay ends at


@dataclass(frozen=True, slots=True)
class StepScales:
    """What settings are multiplied by for the updates of one call; 1 changes nothing."""

    learning_rate: float = 1.0
    entropy_weight: float = 1.0


@dataclass(frozen=True, slots=True)
class LearnerConfig:
    """Defaults suit one CPU core; the presets set what was tuned for a game."""

    batch_size: int = 128  # samples an update; more is steadier and slower
    # devices, each with its process and its part of a batch: GPUs of one node, or CPU cores
    n_devices: int = 1
    accumulate: int = 1  # parts a batch is worked through in; more takes less memory and more time
    sample_interval: int = 1  # updates on each batch drawn; more saves sampling, learns less new
    learning_rate: float = 1e-3  # AdamW step size after the warm-up
    warmup_updates: int = 100  # updates over which the step size rises from 0
    decay_updates: int = 0  # updates over which it falls to a tenth along a cosine; 0 = constant
    weight_decay: float = 1e-4  # AdamW decay of matrices; more forgets faster
    grad_clip: float = 5.0  # largest global gradient norm
    target_momentum: float = 0.05  # share of the new weights that enters the target network a step

    policy_weight: float = 1.0  # weight of the cross-entropy to the visit shares
    value_weight: float = 0.5  # weight of the value cross-entropy
    reward_weight: float = 1.0  # weight of the reward cross-entropy
    latent_weight: float = 2.0  # weight of the next-latent divergence
    entropy_weight: float = 5e-3  # bonus for an undecided policy; more keeps exploring longer

    real_steps: int = 0  # most leading observations given as real ones, 0 means all unroll steps
    averaged_share: float = 0.0  # newest share of all updates in published weights; 0 = no mean
    publish_every: int = 100  # updates between two publications of weights
    watch_every: int = 500  # updates between two looks at dormant units and logit ranges
    keep_bad_batches: int = 8  # newest files in bad-batches/, each the first of a row of bad ones
    bf16: bool = True  # bfloat16 matrix products on CUDA; the CPU always computes in float32

    def __post_init__(self) -> None:
        counts = ("batch_size", "accumulate", "sample_interval", "publish_every", "watch_every")
        for name in (*counts, "keep_bad_batches"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "be at least 1")
        for name in ("learning_rate", "grad_clip"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "be positive")
        weights = ("policy_weight", "value_weight", "reward_weight", "latent_weight")
        for name in (
            *weights,
            "entropy_weight",
            "weight_decay",
            "warmup_updates",
            "decay_updates",
            "real_steps",
        ):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "not be negative")
        _require(
            1 <= self.n_devices <= self.batch_size,
            "n_devices",
            self.n_devices,
            f"lie in [1, learner.batch_size], which is {self.batch_size}",
        )
        _require(
            0 < self.target_momentum <= 1, "target_momentum", self.target_momentum, "lie in (0, 1]"
        )
        _require(
            0 <= self.averaged_share <= 1, "averaged_share", self.averaged_share, "lie in [0, 1]"
        )

    def learning_rate_at(self, updates: int) -> float:
        """Step size of the update that follows `updates` earlier ones."""
        rate = self.learning_rate * min(1.0, (updates + 1) / max(1, self.warmup_updates))
        if self.decay_updates:
            done = min(1.0, updates / self.decay_updates)
            rate *= FINAL_RATE + (1.0 - FINAL_RATE) * 0.5 * (1.0 + math.cos(math.pi * done))
        return rate

    def average_momentum_at(self, updates: int) -> float:
        """Share of the newest weights that enters the average after `updates` updates.

        Polynomial-decay averaging (Shamir & Zhang, arXiv 1212.1824): the horizon grows with the
        run, so that early weights, which are worth little, fade without a second time constant.
        """
        return min(1.0, 1.0 / max(1e-9, self.averaged_share * updates))

    def max_real_steps(self, targets: TargetConfig) -> int:
        """Most leading observations of a window that stay real; the rest are imagined."""
        return min(self.real_steps or targets.unroll_steps, targets.unroll_steps)


def _require(holds: bool, name: str, value: float, rule: str) -> None:
    if not holds:
        raise ValueError(f"learner.{name} must {rule}, got {value}")

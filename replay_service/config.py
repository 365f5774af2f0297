"""Settings of replay and the check that the memory of each shard suffices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from replay_service.segment import GameSpec
from replay_service.storage import (
    ScalarType,
    bytes_per_step,
    rows_per_frame,
)
from replay_service.targets import TargetConfig

_CHOICES = {
    "device": ("auto", "cpu", "cuda"),
    "scalars": ("float16", "float32"),
    "engine": ("auto", "numba", "torch"),
}


@dataclass(frozen=True, slots=True)
class ReplayConfig:
    """Size, over all shards, and sampling law of replay."""

    capacity_mb: float = 2_000.0  # MB of ring memory over all shards; more keeps older steps
    text_mb: float = 64.0  # million characters of prompts and options kept beside the rings
    num_shards: int = 1  # processes that share capacity and batches; more outlive the loss of one
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: the GPU if half its free memory will do
    scalars: ScalarType = "float16"  # of policies and root values; float32 takes twice their memory
    advantages: bool = False  # keep what the search found each action worth, for language.loss
    min_positions: int = 500  # positions needed before training starts; more delays, diversifies

    uniform: bool = False  # true ignores priorities
    alpha: float = 0.6  # exponent of priorities; 0 is uniform, 1 fully proportional
    beta_start: float = 0.4  # importance correction at the start; 1 is complete
    beta_steps: int = 20_000  # sample calls until the correction is complete
    priority_floor: float = 1e-3  # smallest priority counted, so that no position starves
    engine: Literal["auto", "numba", "torch"] = "auto"  # auto: numba on the CPU, torch on a GPU
    max_weight_lag: int = 0  # learner updates that sampled play may lag behind; 0 = any number

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        if self.device == "cuda" and self.engine == "numba":
            raise ValueError(
                "engine is numba, which runs on the CPU only, but device is cuda; set "
                "replay.engine to auto or replay.device to cpu"
            )
        for name in ("capacity_mb", "text_mb", "priority_floor"):
            value = getattr(self, name)
            if not 0.0 < value < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        for name in ("alpha", "beta_start"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        for name in ("num_shards", "min_positions", "beta_steps"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.max_weight_lag < 0:
            raise ValueError(
                f"max_weight_lag must not be negative, got {self.max_weight_lag}; 0 samples play "
                "of any age"
            )

    @property
    def exponent(self) -> float:
        return 0.0 if self.uniform else self.alpha

    def beta(self, n_samples: int) -> float:
        """Exponent of the importance weights after `n_samples` sample calls."""
        done = min(n_samples / self.beta_steps, 1.0)
        return self.beta_start + (1.0 - self.beta_start) * done

    @property
    def of_one_shard(self) -> ReplayConfig:
        """The settings of each shard: an equal part of memory and positions."""
        if self.num_shards == 1:
            return self
        return replace(
            self,
            num_shards=1,
            capacity_mb=self.capacity_mb / self.num_shards,
            text_mb=self.text_mb / self.num_shards,
            min_positions=-(-self.min_positions // self.num_shards),
        )

    def bytes_per_step(self, spec: GameSpec) -> float:
        return bytes_per_step(spec, self.scalars, advantages=self.advantages)

    def n_frames(self, spec: GameSpec) -> int:
        """Different frames the ring can hold; as many steps, when no segment repeats any."""
        return int(self.capacity_mb * 1e6 / self.bytes_per_step(spec))

    def n_rows(self, spec: GameSpec) -> int:
        """Steps and trailing frames the ring can hold; those of two segments may share frames."""
        return int(self.n_frames(spec) * rows_per_frame(spec, self.scalars))


def check_capacity(
    config: ReplayConfig,
    targets: TargetConfig,
    spec: GameSpec,
    batch_size: int,
    *,
    segment_steps: int | None = None,
) -> None:
    """ValueError if a shard's ring could never hold its part of `min_positions` and of a batch.

    segment_steps: trainable positions per segment, where known; every segment takes rows for the
    overlap with its successor too, and the end of the ring may stay unused for one segment.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    n_shards, shard = config.num_shards, config.of_one_shard
    n_wanted = max(shard.min_positions, -(-batch_size // n_shards))
    segment_steps = min(segment_steps or n_wanted, n_wanted)
    rows_per_segment = segment_steps + targets.context_steps + spec.frame_stack
    n_segments = -(-n_wanted // segment_steps)
    n_needed = rows_per_segment * (n_segments + 1 if n_segments > 1 else 1)
    n_held = shard.n_frames(spec)
    if n_held < n_needed:
        n_bytes = config.bytes_per_step(spec)
        needed_mb = n_shards * (n_needed + 1) * n_bytes / 1e6
        each = f" in each of num_shards={n_shards}" if n_shards > 1 else ""
        raise ValueError(
            f"capacity_mb={config.capacity_mb} holds {n_held} steps of {n_bytes:.0f} bytes"
            f"{each}, but min_positions={config.min_positions} and batch_size={batch_size} need "
            f"{n_needed}{each and ' there'}; raise replay.capacity_mb to {needed_mb:.3g} or more, "
            "or lower the others"
        )

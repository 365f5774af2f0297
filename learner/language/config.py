"""Settings of the language learner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from learner.language.losses import LossConfig


@dataclass(frozen=True, slots=True)
class LanguageConfig:
    """Defaults tune the tiny model on one CPU core; LoRA on every linear layer."""

    enabled: bool = False  # false leaves the language model as it was loaded

    batch_size: int = 32  # states in one optimiser step
    micro_batch_size: int = 32  # states in one forward pass; lower takes less memory
    learning_rate: float = 1e-3  # of the adapter; 1e-4 suits models of 0.5 B parameters
    weight_decay: float = 0.0  # pulls the adapter towards no change
    grad_clip: float = 1.0  # largest gradient norm
    loss: LossConfig = field(default_factory=LossConfig)
    steps_per_batch: int = 1  # optimiser steps on each batch; ppo clips from the second one on

    lora_rank: int = 8  # width of the adapter; higher learns more, serves slower
    lora_alpha: float = 16.0  # adapter output is scaled by lora_alpha / lora_rank

    publish_every: int = 16  # optimiser steps between two published adapters
    # adapter: engines serve on meanwhile; full: the whole model with the adapter merged in, which
    # they serve faster but have to stop for, and which takes the model's size on disk three times
    publish: Literal["adapter", "full"] = "adapter"
    n_check_prompts: int = 4  # prompts by which an engine checks a new adapter

    def __post_init__(self) -> None:
        counts = (
            "batch_size", "micro_batch_size", "lora_rank", "steps_per_batch",
            "publish_every", "n_check_prompts",
        )  # fmt: skip
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.publish not in ("adapter", "full"):
            raise ValueError(f"publish must be adapter or full, got {self.publish!r}")
        for name in ("learning_rate", "grad_clip", "lora_alpha"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("weight_decay",):
            if getattr(self, name) < 0.0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size must be at most batch_size={self.batch_size}, "
                f"got {self.micro_batch_size}"
            )

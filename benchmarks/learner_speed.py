"""Learner updates per second on synthetic batches, one thread: CartPole and Mario sizes.

    PYTHONPATH=. python benchmarks/learner_speed.py [--device cpu] [--seconds 8]

Prints one table: milliseconds an update (median), updates/s and samples/s. The batch is made
once, so sampling is not included; see benchmarks of replay for that.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from learner.config import LearnerConfig
from learner.learner import Learner
from learner.world_model import WorldModelConfig
from replay_service.segment import GameSpec
from replay_service.targets import Batch, Handles, TargetConfig

MARIO = GameSpec((1, 64, 64), "uint8", n_actions=7)
CARTPOLE = GameSpec((4,), "float32", n_actions=2)
CASES = (
    ("cartpole", CARTPOLE, WorldModelConfig(), 64),
    ("mario-quick", MARIO, WorldModelConfig(encoder_channels=16), 32),
    ("mario", MARIO, WorldModelConfig(embed_dim=256, n_heads=8, mlp_ratio=4), 64),
)


def synthetic_batch(spec: GameSpec, targets: TargetConfig, n_samples: int, seed: int) -> Batch:
    """A batch of random numbers with every step valid."""
    rng = torch.Generator().manual_seed(seed)
    n_unroll, n_steps = targets.unroll_steps, targets.context_steps
    shape = (n_samples, n_steps, *spec.stacked_shape)
    if spec.obs_dtype == "uint8":
        obs = torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)
    else:
        obs = torch.randn(shape, generator=rng)
    policy = torch.rand(n_samples, n_unroll, spec.n_actions, generator=rng)
    return Batch(
        obs=obs,
        action=torch.randint(0, spec.n_actions, (n_samples, n_steps - 1), generator=rng),
        reward=torch.rand(n_samples, n_unroll, generator=rng),
        n_step_return=torch.rand(n_samples, n_unroll, generator=rng),
        bootstrap_discount=torch.full((n_samples, n_unroll), targets.discount**targets.n_step),
        bootstrap_index=(torch.arange(n_unroll) + targets.n_step).repeat(n_samples, 1),
        policy=policy / policy.sum(-1, keepdim=True),
        root_value=torch.zeros(n_samples, n_unroll),
        valid=torch.ones(n_samples, n_unroll, dtype=torch.bool),
        importance=torch.ones(n_samples),
        weight_version=torch.zeros(n_samples, dtype=torch.long),
        target_version=torch.zeros(n_samples, dtype=torch.long),
        handles=Handles(0, np.arange(n_samples), np.zeros(n_samples, dtype=np.int64)),
    )


def update_times_s(
    spec: GameSpec, model: WorldModelConfig, n_samples: int, device: str, budget_s: float
) -> list[float]:
    """Seconds of each update within the budget, after three to warm up."""
    targets = TargetConfig()
    learner = Learner(LearnerConfig(batch_size=n_samples), model, targets, spec, device, seed=0)
    batch = synthetic_batch(spec, targets, n_samples, seed=0)
    for _ in range(3):
        learner.update(batch)
    times, end = [], time.perf_counter() + budget_s
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        learner.update(batch)  # ends with a transfer, so a CUDA device is done too
        times.append(time.perf_counter() - start)
    return times


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--seconds", type=float, default=8.0, help="time for each row")
    return parser.parse_args(words)


def main() -> None:
    options = parse_options(sys.argv[1:])
    torch.set_num_threads(1)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    table = Table(
        title=f"Learner, {options.device}, {platform.processor() or platform.machine()}, "
        f"torch {torch.__version__}, commit {commit}, load {os.getloadavg()[0]:.1f}"
    )
    for column in ("size", "batch", "parameters", "ms an update", "updates/s", "samples/s"):
        table.add_column(column, justify="right")
    for name, spec, model, n_samples in CASES:
        times = update_times_s(spec, model, n_samples, options.device, options.seconds)
        median = statistics.median(times)
        n_parameters = sum(
            p.numel()
            for p in Learner(
                LearnerConfig(), model, TargetConfig(), spec, "cpu", seed=0
            ).model.parameters()
        )
        table.add_row(
            name,
            str(n_samples),
            f"{n_parameters:,}",
            f"{median * 1e3:.1f}",
            f"{1 / median:.1f}",
            f"{n_samples / median:.0f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()

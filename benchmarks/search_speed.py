"""How fast is the tree search on one core, and where does its time go?

Searches random observations with the real world model (heads re-initialised, so that trees are
as bushy as trained ones) and prints, for several sizes, the median wall time of one search and
its CPU time (on a busy machine only the latter says anything), simulations per CPU second over
all roots, and the split of the wall time: `model` is the forward passes, `tree` the compiled
kernels, `plumbing` the rest (page gathering and writing, transfers, checks). The last column is
the cost of the same simulations without a cache: two forward passes a simulation over the
L * (W - 1) + 1 steps that an exact answer depends on.

Run: python benchmarks/search_speed.py          (one thread, about 10 s; first run compiles 3 s)
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter, thread_time

import numpy as np
import torch

from actors.search import Planner, SearchConfig
from learner.world_model import WorldModel, WorldModelConfig
from replay_service.segment import GameSpec

N_ACTIONS = 7
N_INPUTS = 16


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table."""

    n_roots: int
    n_simulations: int
    embed_dim: int
    n_layers: int
    window_steps: int
    n_heads: int = 4
    mlp_ratio: int = 2
    mlp_hidden: int = 128


CASES = (
    Case(1, 25, 64, 2, 4),
    Case(4, 25, 64, 2, 4),
    Case(8, 25, 64, 2, 4),
    Case(4, 25, 128, 2, 4),
    Case(8, 50, 128, 2, 8),
    Case(64, 25, 64, 2, 4),
)


def make_model(case: Case) -> WorldModel:
    config = WorldModelConfig(
        embed_dim=case.embed_dim,
        n_layers=case.n_layers,
        n_heads=case.n_heads,
        mlp_ratio=case.mlp_ratio,
        mlp_hidden=case.mlp_hidden,
        window_steps=case.window_steps,
    )
    model = WorldModel(config, GameSpec((N_INPUTS,), "float32", N_ACTIONS)).eval()
    for head in (model.policy_head, model.value_head, model.reward_head, model.latent_head):
        torch.nn.init.xavier_uniform_(head[-1].weight)
    model.lay_out_for_few_rows()  # as where env actors search
    return model


def time_searches(
    model: WorldModel, case: Case, seconds: float, device: str = "cpu"
) -> list[tuple[float, ...]]:
    """(wall, CPU, model, tree) seconds of each search, after a warm-up, for about `seconds`."""
    planner = Planner(
        model,
        SearchConfig(n_simulations=case.n_simulations),
        n_envs=case.n_roots,
        discount=0.997,
        seed=0,
        device=device,
    )
    rng, envs = np.random.default_rng(0), np.arange(case.n_roots)
    actions, times = np.full(case.n_roots, -1), []
    end = perf_counter() + seconds
    while perf_counter() < end or len(times) < 8:
        obs = rng.normal(size=(case.n_roots, N_INPUTS)).astype(np.float32)
        start = thread_time()
        output = planner.search(envs, obs, actions, add_noise=True)
        cpu = thread_time() - start
        actions = output.visit_counts.argmax(axis=1)
        stats = output.stats
        times.append((stats.seconds_total, cpu, stats.seconds_model, stats.seconds_tree))
    return times[3:]


@torch.inference_mode()
def time_uncached(model: WorldModel, case: Case) -> float:
    """CPU seconds of one simulation that re-runs its receptive field from raw tokens."""
    n_steps = model.config.receptive_steps
    latents = torch.rand(case.n_roots, n_steps, case.embed_dim)
    actions = torch.zeros(case.n_roots, n_steps, dtype=torch.int64)
    times = []
    for _ in range(20):
        start = thread_time()
        # The action's prediction is the next token's input: two dependent passes here as well.
        model(latents, actions)
        model(latents, actions)
        times.append(thread_time() - start)
    return statistics.median(times)


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="measuring time of each case")
    return parser.parse_args(words)


def main() -> None:
    seconds = parse_options(sys.argv[1:]).seconds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{platform.machine()}, one thread, torch {torch.__version__}, A = {N_ACTIONS}")
    print(
        "  B    N    E  L  W | wall ms  cpu ms  sims/s | model  tree  plumbing | cpu ms, no cache"
    )
    for case in CASES:
        model = make_model(case)
        times = np.array(time_searches(model, case, seconds))
        wall, cpu, in_model, in_tree = np.median(times, axis=0) * 1e3
        uncached = time_uncached(model, case) * case.n_simulations * 1e3
        print(
            f"{case.n_roots:3d} {case.n_simulations:4d} {case.embed_dim:4d} {case.n_layers:2d} "
            f"{case.window_steps:2d} | {wall:7.1f} {cpu:7.1f} "
            f"{case.n_roots * case.n_simulations / cpu * 1e3:7.0f} | {in_model / wall:5.0%} "
            f"{in_tree / wall:5.1%} {1 - (in_model + in_tree) / wall:9.0%} | {uncached:16.1f}"
        )


if __name__ == "__main__":
    main()

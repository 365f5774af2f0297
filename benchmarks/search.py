"""Whole searches against LightZero 0.2.0's UniZero, with equal weights and shapes.

    python benchmarks/search.py            # about 5 minutes after the peer is installed
    python benchmarks/search.py --same-layout        # with LightZero's matrices as ours lie
    python benchmarks/search.py --device cuda --roots 1 8 64 256 --widths 768

8 roots, 50 simulations, 2 layers, 8 heads, a window of 4 steps (LightZero's context of 8 tokens),
7 actions, 101 bins; vector observations, so that search is what is timed: the root's inference
with its context, then the simulations. Heads are re-initialised, so that LightZero's cache keys
differ. Both play B episodes step after step; searches alternate, on the same single core with one
thread each, so that noise hits both alike. Medians; what could not be made equal: `lightzero.py`.

Cache work of ours is all that is neither forward pass nor tree: gathering windows, copying them
into the attention's buffers, writing pages, but also masks, rotations, checks and transfers, so an
upper bound. LightZero's is the time in its cache functions. Neither holds the write of a token's
own keys and values inside attention.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from lightzero import LightZero, comparable_model
from search_speed import N_INPUTS
from training_run import machine_line

from actors.search import Planner, SearchConfig
from learner.world_model import WorldModel

N_SIMULATIONS, DISCOUNT = 50, 0.997
N_WARM_UP = 6  # compiles, and fills the window


@dataclass(frozen=True, slots=True)
class Result:
    """Medians in seconds; bytes after the last search."""

    ours_s: float
    theirs_s: float
    ours_cache_s: float  # all that is neither model nor tree
    theirs_cache_s: float
    memory: dict[str, tuple[float, float]]  # ours, theirs
    distinct: float  # LightZero's cache entries over nodes of its last search


class OurPlay:
    """B episodes played side by side, the most visited action each time."""

    def __init__(self, model: WorldModel, n_roots: int, n_leaves: int, device: str) -> None:
        config = SearchConfig(n_simulations=N_SIMULATIONS, leaves_per_call=n_leaves)
        self.planner = Planner(
            model, config, n_envs=n_roots, discount=DISCOUNT, seed=0, device=device
        )
        self._rng = np.random.default_rng(0)
        self._action = np.full(n_roots, -1)

    def step(self) -> tuple[float, float]:
        """Seconds of one search, and of what is neither model nor tree."""
        n_roots = len(self._action)
        obs = self._rng.normal(size=(n_roots, N_INPUTS)).astype(np.float32)
        start = perf_counter()
        output = self.planner.search(np.arange(n_roots), obs, self._action)
        seconds = perf_counter() - start
        self._action = output.action
        stats = output.stats
        return seconds, stats.seconds_total - stats.seconds_model - stats.seconds_tree

    def memory(self) -> dict[str, float]:
        stats = self.planner.cache_stats()
        node_bytes = stats["recurrent"].bytes_total / stats["recurrent"].pages_total
        names = {"init": "init", "recurrent": "recurrent", "working": "scratch"}
        return {"node_bytes": node_bytes} | {
            name: float(stats[pool].bytes_total) for name, pool in names.items()
        }


def compare(width: int, n_roots: int, core: int | None, options: argparse.Namespace) -> Result:
    torch.manual_seed(0)
    device = options.device
    model = comparable_model(n_roots, N_SIMULATIONS, width).to(device)
    with LightZero(
        model,
        n_roots=n_roots,
        n_simulations=N_SIMULATIONS,
        discount=DISCOUNT,
        core=core,
        device=device,
        same_layout=options.same_layout,
    ) as theirs:
        if device == "cuda":
            model.store_parameters_in(torch.bfloat16)
        ours = OurPlay(model, n_roots, options.leaves, device)
        for _ in range(N_WARM_UP):
            ours.step()
            theirs.ask("step")
        own, answers = [], []
        end = perf_counter() + options.seconds
        while perf_counter() < end or len(own) < 5:
            own.append(ours.step())
            answers.append(theirs.ask("step"))
        memory = theirs.ask("memory")
    return Result(
        ours_s=statistics.median(s for s, _ in own),
        theirs_s=statistics.median(a["seconds"] for a in answers),
        ours_cache_s=statistics.median(c for _, c in own),
        theirs_cache_s=statistics.median(a["cache_seconds"] for a in answers),
        memory={name: (size, memory[name]) for name, size in ours.memory().items()},
        distinct=answers[-1]["entries"] / (n_roots * N_SIMULATIONS),
    )


def print_table(results: dict[tuple[int, int], Result]) -> None:
    print(
        "| width | roots | search, ms: ours / LightZero | simulations/s: ours / LightZero | times |"
    )
    print("|---|---|---|---|---|")
    for (width, n_roots), r in results.items():
        speeds = [n_roots * N_SIMULATIONS / s for s in (r.ours_s, r.theirs_s)]
        print(
            f"| {width} | {n_roots} | {r.ours_s * 1e3:,.1f} / {r.theirs_s * 1e3:,.1f} | "
            f"{speeds[0]:,.0f} / {speeds[1]:,.0f} | {r.theirs_s / r.ours_s:.1f} |"
        )
    print("\n| width | roots | cache work a search, ms: ours / LightZero | part of LightZero's |")
    print("|---|---|---|---|")
    for (width, n_roots), r in results.items():
        print(
            f"| {width} | {n_roots} | {r.ours_cache_s * 1e3:,.1f} / {r.theirs_cache_s * 1e3:,.1f} "
            f"| 1/{r.theirs_cache_s / r.ours_cache_s:.0f} |"
        )
    print("\n| width | roots | bytes of | ours | LightZero |")
    print("|---|---|---|---|---|")
    for (width, n_roots), r in results.items():
        for name, (ours, theirs) in r.memory.items():
            what = "a tree node" if name == "node_bytes" else f"pool {name}"
            print(f"| {width} | {n_roots} | {what} | {ours:,.0f} | {theirs:,.0f} |")
    print(
        "\nOf LightZero's tree nodes "
        + ", ".join(f"{r.distinct:.0%}" for r in results.values())
        + " have a cache entry of their own."
    )


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[768, 128])
    parser.add_argument("--roots", type=int, nargs="+", default=[8])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--leaves", type=int, default=1, help="ours evaluates so many a call; no longer equal work"
    )
    parser.add_argument(
        "--same-layout", action="store_true", help="LightZero's matrices column by column, as ours"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="measuring time of each row")
    return parser.parse_args(words)


def main() -> None:
    options = parse_options(sys.argv[1:])
    core = min(os.sched_getaffinity(0)) if options.device == "cpu" else None
    if core is not None:
        os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    where = "one core" if options.device == "cpu" else torch.cuda.get_device_name()
    print(f"[benchmark] {machine_line()}; {N_SIMULATIONS} simulations, {where}")
    results = {}
    for width in options.widths:
        for n_roots in options.roots:
            results[width, n_roots] = compare(width, n_roots, core, options)
    print_table(results)


if __name__ == "__main__":
    main()

"""Is our prioritized sampler the fastest at sampling plus updating?

    python benchmarks/replay.py                            # about 4 minutes, 2 GB of memory
    python benchmarks/replay.py --items 1000000 --torch-device cuda --peers    # ours alone
    python benchmarks/replay.py --peers cpprb tianshou numpy      # without TorchRL's environment

Every contestant holds the same priorities and takes turns of sampling a batch, with importance
weights, and giving what was sampled new priorities; what is not equal stands in
`sampler_contestants.py`. One core, one thread; turns alternate, so that noise hits all alike, and
the first round is dropped. Before the clock starts, everyone's draws are checked to be
proportional. Medians, in microseconds. `--torch-device` adds our torch engine; on a GPU it is
waited for after each call.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.sampler_contestants import Cpprb, NumpyChoice, Ours, Tianshou, TorchRL
from benchmarks.sampler_turn import Contestant, Times, check, make_priorities, take_turn
from benchmarks.training_run import machine_line

OURS = "ours"
PEERS = {"cpprb": Cpprb, "tianshou": Tianshou, "numpy": NumpyChoice}
TURN_S, TURN_CALLS, MIN_ROUNDS = 0.1, 20, 6  # a call of numpy's at 1e7 items takes half a second
Turn = Callable[[int], Times]  # of a batch size
Figures = tuple[float, float]  # median us of sampling and of updating


def enter(
    n_items: int, peers: Sequence[str], torch_device: str | None, stack: ExitStack
) -> dict[str, Turn]:
    """The turn of everyone who takes part, by name; each has been checked."""
    priorities = make_priorities(n_items)
    contestants: dict[str, Contestant] = {OURS: Ours(priorities)}
    if torch_device:
        contestants[f"ours, torch on {torch_device}"] = Ours(
            priorities, engine="torch", device=torch_device
        )
    contestants |= {name: PEERS[name](priorities) for name in peers if name in PEERS}
    turns: dict[str, Turn] = {}
    for name, contestant in contestants.items():
        check(contestant, priorities)
        turns[name] = partial(
            take_turn,
            contestant,
            seconds=TURN_S,
            max_calls=TURN_CALLS,
            rng=np.random.default_rng(1),
        )
    if "torchrl" in peers:
        torchrl = stack.enter_context(TorchRL(n_items))
        name = f"TorchRL 0.13.3, torch {torchrl.torch_version}"
        turns[name] = partial(torchrl.turn, seconds=TURN_S, max_calls=TURN_CALLS)
    return turns


def alternate(turns: dict[str, Turn], batch_size: int, n_rounds: int) -> dict[str, Figures]:
    """Everyone's figures over `n_rounds` rounds after one that is dropped."""
    for turn in turns.values():
        turn(batch_size)
    times: dict[str, Times] = {name: [] for name in turns}
    for _ in range(n_rounds):
        for name, turn in turns.items():
            times[name] += turn(batch_size)
    return {name: median_us(spent) for name, spent in times.items()}


def median_us(times: Times) -> Figures:
    sampled, updated = zip(*times, strict=True)
    return 1e6 * statistics.median(sampled), 1e6 * statistics.median(updated)


def table(figures: dict[str, dict[str, Figures]]) -> list[str]:
    """Lines of the table of sample + update and of their sum over ours; cell -> name -> figures."""
    names = list(next(iter(figures.values())))
    head = [f"| sample + update, us | {' | '.join(figures)} |", "|---" * (len(figures) + 1) + "|"]
    rows = [
        f"| {name} | {' | '.join(f'{s:,.0f} + {u:,.0f}' for s, u in _row(figures, name))} |"
        for name in names
    ]
    best = _row(figures, OURS)
    ratios = [
        f"| {name} / ours | "
        + " | ".join(
            f"{sum(theirs) / sum(ours):,.1f}"
            for theirs, ours in zip(_row(figures, name), best, strict=True)
        )
        + " |"
        for name in names
        if name != OURS
    ]
    return head + rows + ratios


def _row(figures: dict[str, dict[str, Figures]], name: str) -> list[Figures]:
    return [cell[name] for cell in figures.values()]


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--batch", type=int, nargs="+", default=[256, 1024])
    known = [*PEERS, "torchrl"]
    parser.add_argument("--peers", nargs="*", choices=known, default=known)
    parser.add_argument("--torch-device", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=15, help=f"per cell, {MIN_ROUNDS} or more")
    options = parser.parse_args(words)
    if options.rounds < MIN_ROUNDS:
        parser.error(f"--rounds must be at least {MIN_ROUNDS}, got {options.rounds}")
    return options


def main() -> None:
    options = parse_options(sys.argv[1:])
    print(f"[benchmark] {machine_line()}; one of them used", flush=True)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    figures: dict[str, dict[str, Figures]] = {}
    for n_items in options.items:
        with ExitStack() as stack:
            turns = enter(n_items, options.peers, options.torch_device, stack)
            for batch_size in options.batch:
                cell = f"{n_items:,} items, batch {batch_size}"
                figures[cell] = alternate(turns, batch_size, options.rounds)
    print("\n".join(table(figures)))


if __name__ == "__main__":
    main()

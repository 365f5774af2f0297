"""Tree work alone against LightZero 0.2.0's C++ tree: how long do 50 simulations take?

    python benchmarks/tree.py                # about 2 minutes after the peer is installed

Both get the same prepared model outputs, in the form their own search gets them: ours one array
[B, 2 + A] a simulation, LightZero nested Python lists, which its search makes from arrays each
simulation (`tolist`, inside the clock, as there). One core, one thread; searches of the two
alternate, so that noise hits both alike. The ratio is of medians.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from time import perf_counter
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from peers import interpreter
from training_run import machine_line

from actors.search.config import SearchConfig
from actors.search.planting import NO_REUSE, Roots, plant
from actors.search.selection import make_rule, select
from actors.search.tree import (
    Leaves,
    make_tree,
    root_visits,
)

N_SIMULATIONS, N_CONTEXT = 50, 3
SETTINGS = SearchConfig(n_simulations=N_SIMULATIONS)
RULE = make_rule(SETTINGS, n_envs=1, n_actions=1, discount=0.997)._replace(root_in_bounds=True)
Outputs = NDArray[np.float32]


def load_lightzero() -> ModuleType:
    """LightZero's compiled MuZero tree alone; it needs nothing else of its package."""
    library = interpreter("lightzero").parents[1] / "lib"
    path = next(library.glob("python*/site-packages/lzero/mcts/ctree/ctree_muzero/mz_tree.*.so"))
    name = "lzero.mcts.ctree.ctree_muzero.mz_tree"
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader.exec_module(module)
    return module


def make_ours(n_roots: int, n_actions: int) -> Callable[[Outputs, Outputs], NDArray[np.int32]]:
    """Search over prepared outputs [N, B, 2 + A] from root logits [B, A]; returns visits."""
    rows = np.arange(n_roots)
    tree = make_tree(n_roots, N_SIMULATIONS, n_actions, N_CONTEXT)
    leaves = Leaves(np.zeros((N_CONTEXT + 3, n_roots), np.int64), np.zeros((n_roots, 1), np.int64))
    legal = np.ones((n_roots, n_actions), np.bool_)
    zeros = np.zeros(n_roots, np.int64)

    def search(outputs: Outputs, root_logits: Outputs) -> NDArray[np.int32]:
        weights = np.exp(root_logits - root_logits.max(axis=1, keepdims=True)).astype(np.float64)
        roots = Roots(
            prior=weights / weights.sum(axis=1, keepdims=True),
            legal=legal,
            value=np.zeros(n_roots),
            step=zeros,
            window=np.zeros((n_roots, N_CONTEXT), np.int64),
            first_page=rows * N_SIMULATIONS,
            first_action=np.zeros(n_roots, np.int32),
            reuse=np.full(n_roots, NO_REUSE),
        )
        plant(tree, rows, roots)
        select(tree, rows, RULE, N_SIMULATIONS, leaves)
        for output in outputs:
            select(tree, rows, RULE, N_SIMULATIONS, leaves, output)
        return root_visits(tree, rows)

    return search


def make_lightzero(
    module: ModuleType, n_roots: int, n_actions: int
) -> Callable[[Outputs, Outputs], list[list[int]]]:
    """The same over LightZero's tree, called as its own search calls it."""
    legal = [list(range(n_actions))] * n_roots
    to_play = [-1] * n_roots

    def search(outputs: Outputs, root_logits: Outputs) -> list[list[int]]:
        roots = module.Roots(n_roots, legal)
        roots.prepare_no_noise([0.0] * n_roots, root_logits.tolist(), to_play)
        bounds = module.MinMaxStatsList(n_roots)
        bounds.set_delta(SETTINGS.value_delta_max)
        for index, output in enumerate(outputs):
            results = module.ResultsWrapper(num=n_roots)
            module.batch_traverse(
                roots,
                int(SETTINGS.pb_c_base),
                SETTINGS.pb_c_init,
                RULE.discount,
                bounds,
                results,
                list(to_play),
            )
            module.batch_backpropagate(
                index + 1,
                RULE.discount,
                output[:, 0].tolist(),
                output[:, 1].tolist(),
                output[:, 2:].tolist(),
                bounds,
                results,
                to_play,
            )
        distributions: list[list[int]] = roots.get_distributions()
        return distributions

    return search


def compare(
    module: ModuleType, n_roots: int, n_actions: int, seconds: float
) -> tuple[float, float]:
    """Median seconds of one search: ours, LightZero's."""
    ours = make_ours(n_roots, n_actions)
    theirs = make_lightzero(module, n_roots, n_actions)
    rng, times = np.random.default_rng(0), ([], [])
    end = perf_counter() + seconds
    n_rounds = 0
    while perf_counter() < end or n_rounds < 7:
        outputs = rng.normal(size=(N_SIMULATIONS, n_roots, 2 + n_actions)).astype(np.float32)
        root_logits = rng.normal(size=(n_roots, n_actions)).astype(np.float32)
        for search, spent in zip((ours, theirs), times, strict=True):
            start = perf_counter()
            search(outputs, root_logits)
            spent.append(perf_counter() - start)
        n_rounds += 1
    # The first round compiles.
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


def parse_options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--roots", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--actions", type=int, nargs="+", default=[7, 18, 55])
    parser.add_argument("--seconds", type=float, default=8.0, help="per cell")
    return parser.parse_args(words)


def main() -> None:
    options = parse_options(sys.argv[1:])
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    module = load_lightzero()
    print(f"[benchmark] {machine_line()}; {N_SIMULATIONS} simulations, one core")
    print("| roots | actions | ours, ms | LightZero, ms | ours, ksims/s | LightZero / ours |")
    print("|---|---|---|---|---|---|")
    for n_roots in options.roots:
        for n_actions in options.actions:
            ours, theirs = compare(module, n_roots, n_actions, options.seconds)
            speed = n_roots * N_SIMULATIONS / ours / 1e3
            print(
                f"| {n_roots} | {n_actions} | {ours * 1e3:.2f} | {theirs * 1e3:.2f} | "
                f"{speed:,.0f} | {theirs / ours:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

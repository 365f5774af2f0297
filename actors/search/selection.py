"""Selection: walk every tree from its root to the leaves that the model evaluates next."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.search import gumbel, puct
from actors.search.config import SearchConfig
from actors.search.tree import (
    NO_LEAF,
    ROOT,
    Floats,
    Ints,
    Leaves,
    Records,
    Tree,
    ask,
    grow,
    hold,
    kernel,
    make_node,
)

NO_OUTPUTS = np.zeros((0, 0), np.float32)


class Rule(NamedTuple):
    """How the trees of one planner are searched.

    constants: [3] of PUCT (base, init, smallest range) or [2] of Gumbel (visits, scale)
    noise:     [n_envs, A] float64, Gumbel noise of each environment's root
    n_considered: [n_envs] int64, root actions that Gumbel divides its simulations among
    schedule:  [max_considered + 1, N] int64, gumbel.halving_schedule
    root_in_bounds: the root's own value widens the min-max bounds, as in LightZero
    """

    is_gumbel: bool
    constants: Floats
    noise: Floats
    n_considered: Ints
    schedule: Ints
    discount: float
    root_in_bounds: bool = False


def make_rule(config: SearchConfig, n_envs: int, n_actions: int, discount: float) -> Rule:
    """The rule that `config` names; noise and numbers of considered actions start at zero."""
    is_gumbel = config.variant == "gumbel"
    of_puct = (config.pb_c_base, config.pb_c_init, config.value_delta_max)
    of_gumbel = (config.q_weight_visits, config.q_weight_scale)
    n_most = min(config.max_considered_actions, n_actions)
    return Rule(
        is_gumbel,
        np.array(of_gumbel if is_gumbel else of_puct),
        np.zeros((n_envs, n_actions)),
        np.zeros(n_envs, np.int64),
        gumbel.halving_schedule(n_most, config.n_simulations),
        discount,
    )


def select(
    tree: Tree,
    envs: Ints,
    rule: Rule,
    n_simulations: int,
    leaves: Leaves,
    outputs: NDArray[np.floating] = NO_OUTPUTS,
) -> int:
    """Choose up to K leaves in the tree of each of `envs` and fill `leaves`; returns how many.

    A tree takes no more than brings it to `n_simulations`. A second choice of one leaf evaluates it
    twice, to the same result, and counts as two visits.
    outputs [B * K, 2 + A]: the model's answers for what `leaves` held, which the trees take in
    first; none in a search's first call.
    """
    return _select(*tree, envs, *leaves, outputs, n_simulations, *rule)


@kernel
def _find_leaf(
    nodes: Records,
    edges: Records,
    window: Ints,
    trunk: np.void,
    with_pending: bool,
    is_gumbel: bool,
    constants: Floats,
    noise: Floats,
    n_wanted_visits: int,
    scratch: Floats,
) -> int:
    """Walk to an unvisited edge and make its node, or to a leaf that is being evaluated."""
    n, q = ROOT, 0.0
    while True:
        if not is_gumbel:
            q = puct.mean_q(edges, n, q)
            a = puct.best_action(nodes, edges, trunk, n, q, with_pending, constants)
        elif n == ROOT:
            a = gumbel.best_root_action(nodes, edges, constants, noise, n_wanted_visits, scratch)
        else:
            a = gumbel.best_action(nodes, edges, n, constants, scratch)
        child = edges[n, a].child
        if child < 0:
            return make_node(nodes, edges, window, trunk, n, a)
        if nodes[child].visits == 0:
            return child
        n = child


@kernel
def _select(
    nodes: Records,
    edges: Records,
    window: Ints,
    trunks: Records,
    envs: Ints,
    asked: Ints,
    leaf_nodes: Ints,
    outputs: NDArray[np.floating],
    n_simulations: int,
    is_gumbel: bool,
    constants: Floats,
    noise: Floats,
    n_considered: Ints,
    schedule: Ints,
    discount: float,
    root_in_bounds: bool,
) -> int:
    """Tree by tree, so that its records stay in the processor's cache: grow it, then select.

    One call from Python a simulation: for a single root, calls cost more than the work.
    """
    n_leaves, n_chosen = leaf_nodes.shape[1], 0
    scratch = np.empty(edges.shape[2] if is_gumbel else 0)
    for i in range(len(envs)):
        b, first = envs[i], i * n_leaves
        trunk = trunks[b]
        if len(outputs):
            answers = outputs[first : first + n_leaves]
            grow(nodes[b], edges[b], trunk, leaf_nodes[i], answers, discount, root_in_bounds)
        n_done = nodes[b, ROOT].visits - 1
        n_missing = 0 if trunk.failed else n_simulations - n_done
        for k in range(n_leaves):
            leaf = NO_LEAF
            if k < n_missing:
                n_wanted_visits = schedule[n_considered[b], n_done + k] if is_gumbel else 0
                leaf = _find_leaf(
                    nodes[b],
                    edges[b],
                    window[b],
                    trunk,
                    n_leaves > 1,
                    is_gumbel,
                    constants,
                    noise[b],
                    n_wanted_visits,
                    scratch,
                )
                if n_leaves > 1:
                    hold(nodes[b], leaf, 1)
                n_chosen += 1
            leaf_nodes[i, k] = leaf
            ask(nodes[b], window[b], trunk, leaf, asked, first + k)
    return n_chosen

"""PUCT: which leaves to evaluate next.

MuZero's rule (arXiv 1911.08265, appendix B) with LightZero's running mean Q for unvisited
children. With K leaves a call, a leaf that is being evaluated counts as a visit of the lowest
value seen (virtual loss, Chaslot et al. 2008), so that the others look elsewhere.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.search.tree import (
    ILLEGAL,
    NO_LEAF,
    ROOT,
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


class Puct(NamedTuple):
    """Constants of one search."""

    pb_c_base: float
    pb_c_init: float
    value_delta_max: float
    discount: float
    root_in_bounds: bool = False  # the root's own value widens the min-max bounds, as in LightZero


def select(
    tree: Tree,
    envs: Ints,
    puct: Puct,
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
    nodes, edges, window, trunks = tree
    asked, leaf_nodes = leaves
    return _select(
        nodes, edges, window, trunks, envs, asked, leaf_nodes, outputs, n_simulations, *puct
    )


@kernel
def _scaled(q: float, low: float, high: float, delta_max: float) -> float:
    """Min-max normalisation as LightZero does it: raw while only one value was seen."""
    if high > low:
        q = (q - low) / max(high - low, delta_max)
    return min(max(q, 0.0), 1.0)


@kernel
def _mean_q(edges: Records, node: int, parent_q: float) -> float:
    """Mean Q of visited children, with the parent's mean as one more sample below the root."""
    total, n_visited = 0.0, 0
    for a in range(edges.shape[1]):
        edge = edges[node, a]
        if edge.visits > 0:
            total += edge.q
            n_visited += 1
    if node == ROOT and n_visited > 0:
        return total / n_visited
    return (parent_q + total) / (n_visited + 1)


@kernel
def _best_action(
    nodes: Records,
    edges: Records,
    trunk: np.void,
    n: int,
    mean_q: float,
    with_pending: bool,
    pb_c_base: float,
    pb_c_init: float,
    delta_max: float,
) -> int:
    """Child with the highest PUCT score; exact ties go to the higher prior, then scan order."""
    n_actions = edges.shape[1]
    n_children_visits = nodes[n].visits - 1 + nodes[n].pending
    low, high = trunk.low, trunk.high
    pb_c = math.log((n_children_visits + pb_c_base + 1.0) / pb_c_base) + pb_c_init
    pb_c *= math.sqrt(n_children_visits)
    unvisited = _scaled(mean_q, low, high, delta_max)
    best, best_score, best_prior = -1, -math.inf, -math.inf
    a = trunk.first_action
    for _ in range(n_actions):
        edge = edges[n, a]
        if edge.child != ILLEGAL:
            scaled, n_visits = unvisited, edge.visits
            if n_visits > 0:
                scaled = _scaled(edge.q, low, high, delta_max)
            if with_pending and edge.child >= 0 and nodes[edge.child].pending > 0:
                n_visits += nodes[edge.child].pending
                scaled *= edge.visits / n_visits
            score = pb_c * edge.prior / (n_visits + 1) + scaled
            if score > best_score or (score == best_score and edge.prior > best_prior):
                best, best_score, best_prior = a, score, edge.prior
        a += 1
        if a == n_actions:
            a = 0
    return best


@kernel
def _find_leaf(
    nodes: Records,
    edges: Records,
    window: Ints,
    trunk: np.void,
    with_pending: bool,
    pb_c_base: float,
    pb_c_init: float,
    delta_max: float,
) -> int:
    """Walk to an unvisited edge and make its node, or to a leaf that is being evaluated."""
    n, mean_q = ROOT, 0.0
    while True:
        mean_q = _mean_q(edges, n, mean_q)
        a = _best_action(
            nodes, edges, trunk, n, mean_q, with_pending, pb_c_base, pb_c_init, delta_max
        )
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
    pb_c_base: float,
    pb_c_init: float,
    delta_max: float,
    discount: float,
    root_in_bounds: bool,
) -> int:
    """Tree by tree, so that its records stay in the processor's cache: grow it, then select.

    One call from Python a simulation: for a single root, calls cost more than the work.
    """
    n_leaves, n_chosen = leaf_nodes.shape[1], 0
    for i in range(len(envs)):
        b, first = envs[i], i * n_leaves
        trunk = trunks[b]
        if len(outputs):
            answers = outputs[first : first + n_leaves]
            grow(nodes[b], edges[b], trunk, leaf_nodes[i], answers, discount, root_in_bounds)
        n_missing = 0 if trunk.failed else n_simulations - (nodes[b, ROOT].visits - 1)
        for k in range(n_leaves):
            leaf = NO_LEAF
            if k < n_missing:
                leaf = _find_leaf(
                    nodes[b],
                    edges[b],
                    window[b],
                    trunk,
                    n_leaves > 1,
                    pb_c_base,
                    pb_c_init,
                    delta_max,
                )
                if n_leaves > 1:
                    hold(nodes[b], leaf, 1)
                n_chosen += 1
            leaf_nodes[i, k] = leaf
            ask(nodes[b], window[b], trunk, leaf, asked, first + k)
    return n_chosen

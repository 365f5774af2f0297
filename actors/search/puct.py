"""PUCT: which leaves to evaluate next.

MuZero's rule (arXiv 1911.08265, appendix B) with LightZero's running mean Q for unvisited
children. With K leaves a call, a leaf that is being evaluated counts as a visit of the lowest
value seen (virtual loss, Chaslot et al. 2008), so that the others look elsewhere.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from numba import njit

from actors.search.tree import ILLEGAL, NO_LEAF, ROOT, Ints, Leaves, Tree, hold, make_node
from cache.pages import NULL_PAGE, SPARE_PAGE


class Puct(NamedTuple):
    """Constants of one search."""

    pb_c_base: float
    pb_c_init: float
    value_delta_max: float
    discount: float


@njit(nogil=True, cache=True)
def _scaled(q: float, low: float, high: float, delta_max: float) -> float:
    """Min-max normalisation as LightZero does it: raw while only one value was seen."""
    if high > low:
        q = (q - low) / max(high - low, delta_max)
    return min(max(q, 0.0), 1.0)


@njit(nogil=True, cache=True)
def _mean_q(tree: Tree, b: int, node: int, parent_q: float) -> float:
    """Mean Q of visited children, with the parent's mean as one more sample below the root."""
    total, n_visited = 0.0, 0
    for a in range(tree.child.shape[2]):
        child = tree.child[b, node, a]
        if child >= 0 and tree.visits[b, child] > 0:
            total += tree.q[b, node, a]
            n_visited += 1
    if node == ROOT and n_visited > 0:
        return total / n_visited
    return (parent_q + total) / (n_visited + 1)


@njit(nogil=True, cache=True)
def _best_action(tree: Tree, b: int, node: int, mean_q: float, puct: Puct) -> int:
    """Child with the highest PUCT score; exact ties go to the higher prior, then scan order."""
    n_actions = tree.child.shape[2]
    n_children_visits = tree.visits[b, node] - 1 + tree.pending[b, node]
    low, high = tree.bounds[b, 0], tree.bounds[b, 1]
    pb_c = math.log((n_children_visits + puct.pb_c_base + 1.0) / puct.pb_c_base) + puct.pb_c_init
    pb_c *= math.sqrt(n_children_visits)
    best, best_score, best_prior = -1, -math.inf, -math.inf
    for k in range(n_actions):
        a = (k + tree.first_action[b]) % n_actions
        child = tree.child[b, node, a]
        if child == ILLEGAL:
            continue
        q, n, n_pending = mean_q, 0, 0
        if child >= 0:
            n, n_pending = tree.visits[b, child], tree.pending[b, child]
            if n > 0:
                q = tree.q[b, node, a]
        scaled = _scaled(q, low, high, puct.value_delta_max)
        if n_pending > 0:
            scaled *= n / (n + n_pending)
        prior = tree.prior[b, node, a]
        score = pb_c * prior / (n + n_pending + 1) + scaled
        if score > best_score or (score == best_score and prior > best_prior):
            best, best_score, best_prior = a, score, prior
    return best


@njit(nogil=True, cache=True)
def _find_leaf(tree: Tree, b: int, puct: Puct) -> int:
    """Walk to an unvisited edge and make its node, or to a leaf that is being evaluated."""
    node, mean_q = ROOT, 0.0
    while True:
        mean_q = _mean_q(tree, b, node, mean_q)
        action = _best_action(tree, b, node, mean_q, puct)
        child = tree.child[b, node, action]
        if child < 0:
            return make_node(tree, b, node, action)
        node = child
        if tree.visits[b, node] == 0:
            return node


@njit(nogil=True, cache=True)
def select(
    tree: Tree, rows: Ints, puct: Puct, n_simulations: int, root_step: Ints, leaves: Leaves
) -> int:
    """Choose up to K leaves in every tree of `rows` [B] and fill `leaves`; returns how many.

    A tree takes no more than brings it to `n_simulations`. root_step [B] int64: step of the root.
    A second choice of one leaf evaluates it twice, to the same result, and counts as two visits.
    """
    n_leaves = leaves.node.shape[1]
    n_chosen = 0
    for i in range(len(rows)):
        b = rows[i]
        n_missing = 0 if tree.failed[b] else n_simulations - (tree.visits[b, ROOT] - 1)
        for k in range(n_leaves):
            m = i * n_leaves + k
            if k >= n_missing:
                leaves.node[i, k] = NO_LEAF
                leaves.window[m] = NULL_PAGE
                leaves.page[m], leaves.action[m], leaves.step[m] = SPARE_PAGE, 0, 0
                continue
            leaf = _find_leaf(tree, b, puct)
            if n_leaves > 1:
                hold(tree, b, leaf, 1)
            leaves.node[i, k] = leaf
            leaves.window[m] = tree.window[b, tree.parent[b, leaf]]
            leaves.page[m], leaves.action[m] = tree.page[b, leaf], tree.action[b, leaf]
            leaves.step[m] = root_step[i] + tree.depth[b, leaf]
            n_chosen += 1
    return n_chosen

"""Search trees of B roots as flat arrays, and the compiled kernels that walk them.

Node 0 is the root; the node expanded by simulation i is i + 1, so latents and pages need no map.
PUCT follows MuZero with LightZero's constants and its running mean Q for unvisited children.
Kernels are serial and release the GIL: parallel threads inside them cost more than they bring.
All values are float64: the trees are small, and a plain Python reference then agrees exactly.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]

ROOT = 0
UNVISITED = -1
ILLEGAL = -2


class Tree(NamedTuple):
    """Arrays of B trees with N + 1 nodes and A actions.

    child:        [B, N+1, A] int32, node id, UNVISITED or ILLEGAL
    prior:        [B, N+1, A] float64
    q:            [B, N+1, A] float64, reward + discount * child value; 0 where unvisited
    visits:       [B, N+1] int32, of nodes; a fresh root has 1
    value_sum:    [B, N+1] float64
    reward:       [B, N+1] float64, on the edge into the node
    parent, action: [B, N+1] int32
    depth:        [B, N+1] int32
    window:       [B, N+1, C] int64, pages of the last C steps ending with the node
    bounds:       [B, 2] float64, smallest and largest Q seen
    failed:       [B] bool, the row met a number that is not finite
    first_action: [B] int32, where scanning for the best child starts; decides exact ties
    """

    child: NDArray[np.int32]
    prior: NDArray[np.float64]
    q: NDArray[np.float64]
    visits: NDArray[np.int32]
    value_sum: NDArray[np.float64]
    reward: NDArray[np.float64]
    parent: NDArray[np.int32]
    action: NDArray[np.int32]
    depth: NDArray[np.int32]
    window: NDArray[np.int64]
    bounds: NDArray[np.float64]
    failed: NDArray[np.bool_]
    first_action: NDArray[np.int32]


class Leaves(NamedTuple):
    """What a selection asks of the model, one row per root; views of one int64 buffer.

    window: [B, C] pages of the steps before the leaf; page, action, step: [B] of the leaf
    """

    window: NDArray[np.int64]
    page: NDArray[np.int64]
    action: NDArray[np.int64]
    step: NDArray[np.int64]


class Puct(NamedTuple):
    """Constants of one search."""

    pb_c_base: float
    pb_c_init: float
    value_delta_max: float
    discount: float


def make_tree(n_roots: int, n_simulations: int, n_actions: int, n_window: int) -> Tree:
    """Allocate trees for up to `n_roots` roots; `plant` prepares them for a search."""
    nodes = (n_roots, n_simulations + 1)
    edges = (*nodes, n_actions)
    return Tree(
        child=np.full(edges, UNVISITED, np.int32),
        prior=np.zeros(edges),
        q=np.zeros(edges),
        visits=np.zeros(nodes, np.int32),
        value_sum=np.zeros(nodes),
        reward=np.zeros(nodes),
        parent=np.zeros(nodes, np.int32),
        action=np.zeros(nodes, np.int32),
        depth=np.zeros(nodes, np.int32),
        window=np.zeros((*nodes, n_window), np.int64),
        bounds=np.zeros((n_roots, 2)),
        failed=np.zeros(n_roots, np.bool_),
        first_action=np.zeros(n_roots, np.int32),
    )


def plant(
    tree: Tree,
    prior: NDArray[np.float64],
    legal: NDArray[np.bool_],
    value: NDArray[np.float64],
    window: NDArray[np.int64],
    first_action: NDArray[np.int32],
) -> None:
    """Start new trees: root prior [B, A] (noise included), legal [B, A], root value [B].

    `window` [B, C] are the pages of the last C real steps, the root's own included.
    A root value of 0 instead of the model's gives LightZero's statistics at the root.
    """
    tree.child[:] = UNVISITED
    tree.child[:, ROOT][~legal] = ILLEGAL
    tree.prior[:, ROOT] = prior
    tree.q[:] = 0.0
    tree.visits[:] = 0
    tree.visits[:, ROOT] = 1
    tree.value_sum[:, ROOT] = value
    tree.reward[:, ROOT] = 0.0
    tree.depth[:] = 0
    tree.window[:, ROOT] = window
    tree.bounds[:, 0], tree.bounds[:, 1] = np.inf, -np.inf
    tree.failed[:] = ~np.isfinite(value)
    tree.first_action[:] = first_action


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
        if tree.child[b, node, a] >= 0:
            total += tree.q[b, node, a]
            n_visited += 1
    if node == ROOT and n_visited > 0:
        return total / n_visited
    return (parent_q + total) / (n_visited + 1)


@njit(nogil=True, cache=True)
def _best_action(tree: Tree, b: int, node: int, mean_q: float, puct: Puct) -> int:
    """Child with the highest PUCT score; exact ties go to the higher prior, then scan order."""
    n_actions = tree.child.shape[2]
    n_children_visits = tree.visits[b, node] - 1
    low, high = tree.bounds[b, 0], tree.bounds[b, 1]
    pb_c = math.log((n_children_visits + puct.pb_c_base + 1.0) / puct.pb_c_base) + puct.pb_c_init
    pb_c *= math.sqrt(n_children_visits)
    best, best_score, best_prior = -1, -math.inf, -math.inf
    for k in range(n_actions):
        a = (k + tree.first_action[b]) % n_actions
        child = tree.child[b, node, a]
        if child == ILLEGAL:
            continue
        q, n = mean_q, 0
        if child >= 0:
            q, n = tree.q[b, node, a], tree.visits[b, child]
        prior = tree.prior[b, node, a]
        score = pb_c * prior / (n + 1) + _scaled(q, low, high, puct.value_delta_max)
        if score > best_score or (score == best_score and prior > best_prior):
            best, best_score, best_prior = a, score, prior
    return best


@njit(nogil=True, cache=True)
def select(
    tree: Tree, simulation: int, puct: Puct, root_step: Ints, first_page: Ints, leaves: Leaves
) -> None:
    """Walk every tree to an unvisited edge, make node `simulation + 1` there, fill `leaves`.

    root_step [B] int64: step of the root; first_page [B] int64: page of node 1.
    """
    new = simulation + 1
    n_window = tree.window.shape[2]
    for b in range(tree.child.shape[0]):
        node, parent_q, action = ROOT, 0.0, 0
        while not tree.failed[b]:
            parent_q = _mean_q(tree, b, node, parent_q)
            action = _best_action(tree, b, node, parent_q, puct)
            child = tree.child[b, node, action]
            if child < 0:
                break
            node = child
        tree.parent[b, new], tree.action[b, new] = node, action
        tree.depth[b, new] = tree.depth[b, node] + 1
        page = first_page[b] + simulation
        for c in range(n_window):
            leaves.window[b, c] = tree.window[b, node, c]
            if c > 0:
                tree.window[b, new, c - 1] = tree.window[b, node, c]
        if n_window > 0:
            tree.window[b, new, n_window - 1] = page
        leaves.page[b], leaves.action[b] = page, action
        leaves.step[b] = root_step[b] + tree.depth[b, new]


@njit(nogil=True, cache=True)
def _expand(tree: Tree, b: int, node: int, outputs: NDArray[np.floating]) -> bool:
    """Softmax of row b's logits (outputs[b, 2:]) into the priors of `node`; False if not finite."""
    n_actions = tree.child.shape[2]
    if not (math.isfinite(outputs[b, 0]) and math.isfinite(outputs[b, 1])):
        return False
    top = -math.inf
    for a in range(n_actions):
        logit = outputs[b, 2 + a]
        if not math.isfinite(logit):
            return False
        top = max(top, logit)
    total = 0.0
    for a in range(n_actions):
        weight = math.exp(outputs[b, 2 + a] - top)
        tree.prior[b, node, a] = weight
        total += weight
    for a in range(n_actions):
        tree.prior[b, node, a] /= total
    return True


@njit(nogil=True, cache=True)
def _widen(tree: Tree, b: int, q: float) -> None:
    tree.bounds[b, 0] = min(tree.bounds[b, 0], q)
    tree.bounds[b, 1] = max(tree.bounds[b, 1], q)


@njit(nogil=True, cache=True)
def expand_and_backup(
    tree: Tree, simulation: int, puct: Puct, outputs: NDArray[np.floating], root_in_bounds: bool
) -> None:
    """Expand node `simulation + 1` of every tree and carry its value to the root.

    outputs [B, 2 + A]: reward into the node, its value, its policy logits. A row with a number
    that is not finite is marked failed and left alone from then on.
    root_in_bounds: let the root's value into the min-max bounds, as LightZero does.
    """
    new = simulation + 1
    for b in range(tree.child.shape[0]):
        if tree.failed[b] or not _expand(tree, b, new, outputs):
            tree.failed[b] = True
            continue
        tree.reward[b, new], tree.value_sum[b, new] = outputs[b, 0], 0.0
        tree.child[b, tree.parent[b, new], tree.action[b, new]] = new
        node, value = new, float(outputs[b, 1])
        while node != ROOT:
            tree.visits[b, node] += 1
            tree.value_sum[b, node] += value
            mean = tree.value_sum[b, node] / tree.visits[b, node]
            q = tree.reward[b, node] + puct.discount * mean
            tree.q[b, tree.parent[b, node], tree.action[b, node]] = q
            _widen(tree, b, q)
            value = tree.reward[b, node] + puct.discount * value
            node = tree.parent[b, node]
        tree.visits[b, ROOT] += 1
        tree.value_sum[b, ROOT] += value
        if root_in_bounds:
            _widen(tree, b, puct.discount * tree.value_sum[b, ROOT] / tree.visits[b, ROOT])


def root_visits(tree: Tree) -> NDArray[np.int32]:
    """Visits of each root action [B, A], 0 for unvisited and illegal ones."""
    child = tree.child[:, ROOT]
    visits = np.take_along_axis(tree.visits, np.maximum(child, ROOT), axis=1)
    return np.where(child >= 0, visits, 0).astype(np.int32)

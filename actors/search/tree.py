"""Search trees of B environments as flat arrays, and the compiled kernels that grow them.

A tree stays with its environment between searches; a call names the `envs` it works on. Node 0 is
the root, later nodes are numbered as they are made, so a parent's number is below its children's.
How they begin is the matter of `planting`, which leaves they grow that of `puct`.
Kernels are serial and release the GIL: parallel threads inside them cost more than they bring.
Records keep what a walk reads together, and few arguments make a call from Python cheap.
All values are float64: the trees are small, and a plain Python reference then agrees exactly.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cache.pages import NULL_PAGE, SPARE_PAGE

Ints = NDArray[np.int64]
Records = NDArray[np.void]

ROOT = 0
UNVISITED = -1
ILLEGAL = -2
NO_LEAF = 0  # in place of a leaf's node: nothing to evaluate

EDGE = np.dtype(
    [
        ("prior", np.float64),
        ("q", np.float64),  # reward + discount * child value; 0 where unvisited
        ("child", np.int32),  # node, UNVISITED or ILLEGAL
        ("visits", np.int32),  # of the child
    ]
)
NODE = np.dtype(
    [
        ("value_sum", np.float64),
        ("reward", np.float64),  # on the edge into the node
        ("page", np.int64),  # of its keys and values; not for the root
        ("visits", np.int32),  # a fresh root has 1, a leaf not yet evaluated 0
        ("pending", np.int32),  # leaves at or below the node that are being evaluated
        ("parent", np.int32),
        ("action", np.int32),
        ("depth", np.int32),
        ("unused", np.int32),  # keeps records aligned to 8 bytes
    ]
)
TRUNK = np.dtype(
    [
        ("low", np.float64),  # smallest Q seen
        ("high", np.float64),  # largest Q seen
        ("step", np.int64),  # of the root in its episode
        ("n_nodes", np.int32),  # the root included; nodes beyond are garbage
        ("first_action", np.int32),  # where scanning for the best child starts; decides exact ties
        ("failed", np.int64),  # 1: the tree met a number that is not finite
    ]
)


class Tree(NamedTuple):
    """B trees with up to N + 1 nodes and A actions.

    nodes:  [B, N+1] NODE
    edges:  [B, N+1, A] EDGE
    window: [B, N+1, C] int64, pages of the last C steps ending with the node
    trunks: [B] TRUNK
    """

    nodes: Records
    edges: Records
    window: Ints
    trunks: Records


class Leaves(NamedTuple):
    """What a selection asks of the model; column i * K + k is leaf k of root i.

    asked: [C + 3, B * K] int64: pages of the C steps before the leaf, its page, action and step
    node:  [B, K] int64, of the tree; NO_LEAF in idle columns
    """

    asked: Ints
    node: Ints


def make_tree(n_envs: int, n_simulations: int, n_actions: int, n_window: int) -> Tree:
    """Allocate trees for `n_envs` environments; `planting.plant` prepares them for a search."""
    nodes = (n_envs, n_simulations + 1)
    return Tree(
        nodes=np.zeros(nodes, NODE),
        edges=np.zeros((*nodes, n_actions), EDGE),
        window=np.zeros((*nodes, n_window), np.int64),
        trunks=np.zeros(n_envs, TRUNK),
    )


@njit(nogil=True, cache=True)
def widen(trunk: np.void, q: float) -> None:
    trunk.low = min(trunk.low, q)
    trunk.high = max(trunk.high, q)


@njit(nogil=True, cache=True)
def clear_edge(edge: np.void, child: int) -> None:
    edge.child, edge.visits, edge.q = child, 0, 0.0


@njit(nogil=True, cache=True)
def make_node(
    nodes: Records, edges: Records, window: Ints, trunks: Records, b: int, parent: int, action: int
) -> int:
    """A leaf below `parent`, empty until it is expanded; returns its number."""
    new = trunks[b].n_nodes
    trunks[b].n_nodes += 1
    edges[b, parent, action].child = new
    node = nodes[b, new]
    node.parent, node.action, node.depth = parent, action, nodes[b, parent].depth + 1
    node.visits, node.pending, node.value_sum = 0, 0, 0.0
    n_window = window.shape[2]
    for c in range(1, n_window):
        window[b, new, c - 1] = window[b, parent, c]
    if n_window > 0:
        window[b, new, n_window - 1] = node.page
    return new


@njit(nogil=True, cache=True)
def ask(
    nodes: Records, window: Ints, trunks: Records, b: int, leaf: int, asked: Ints, m: int
) -> None:
    """Fill column `m` with what the model needs to evaluate `leaf`; an idle one for NO_LEAF."""
    n_window = window.shape[2]
    if leaf == NO_LEAF:
        for c in range(n_window):
            asked[c, m] = NULL_PAGE
        asked[n_window, m], asked[n_window + 1, m], asked[n_window + 2, m] = SPARE_PAGE, 0, 0
        return
    node = nodes[b, leaf]
    for c in range(n_window):
        asked[c, m] = window[b, node.parent, c]
    asked[n_window, m], asked[n_window + 1, m] = node.page, node.action
    asked[n_window + 2, m] = trunks[b].step + node.depth


@njit(nogil=True, cache=True)
def hold(nodes: Records, b: int, leaf: int, n: int) -> None:
    """Add `n` pending evaluations to every node from `leaf` to the root."""
    node = leaf
    nodes[b, ROOT].pending += n
    while node != ROOT:
        nodes[b, node].pending += n
        node = nodes[b, node].parent


@njit(nogil=True, cache=True)
def _expand(edges: Records, outputs: NDArray[np.floating]) -> bool:
    """Softmax of the logits (outputs[2:]) into the priors of one node; False if not finite."""
    n_actions = edges.shape[0]
    if not (math.isfinite(outputs[0]) and math.isfinite(outputs[1])):
        return False
    top = -math.inf
    for a in range(n_actions):
        logit = outputs[2 + a]
        if not math.isfinite(logit):
            return False
        top = max(top, logit)
    total = 0.0
    for a in range(n_actions):
        edge = edges[a]
        edge.prior = math.exp(outputs[2 + a] - top)
        clear_edge(edge, UNVISITED)
        total += edge.prior
    for a in range(n_actions):
        edges[a].prior /= total
    return True


@njit(nogil=True, cache=True)
def _back_up(
    nodes: Records,
    edges: Records,
    trunk: np.void,
    leaf: int,
    value: float,
    discount: float,
    root_in_bounds: bool,
) -> None:
    """Add one visit of `value` to a leaf of one tree and, discounted, to all nodes above it."""
    n = leaf
    while n != ROOT:
        node = nodes[n]
        node.visits += 1
        node.value_sum += value
        edge = edges[node.parent, node.action]
        edge.visits = node.visits
        edge.q = node.reward + discount * (node.value_sum / node.visits)
        widen(trunk, edge.q)
        value = node.reward + discount * value
        n = node.parent
    root = nodes[ROOT]
    root.visits += 1
    root.value_sum += value
    if root_in_bounds:
        widen(trunk, discount * root.value_sum / root.visits)


@njit(nogil=True, cache=True)
def grow(
    nodes: Records,
    edges: Records,
    trunks: Records,
    envs: Ints,
    leaf_nodes: Ints,
    outputs: NDArray[np.floating],
    discount: float,
    root_in_bounds: bool,
) -> None:
    """Expand the chosen leaves [B, K] and carry their values to the roots.

    outputs [B * K, 2 + A]: reward into the leaf, its value, its policy logits. A tree that meets a
    number that is not finite is marked failed and left alone from then on.
    root_in_bounds: let the root's value into the min-max bounds, as LightZero does.
    """
    n_leaves = leaf_nodes.shape[1]
    for i in range(len(envs)):
        b = envs[i]
        for k in range(n_leaves):
            leaf, output = leaf_nodes[i, k], outputs[i * n_leaves + k]
            if leaf == NO_LEAF or trunks[b].failed:
                continue
            if n_leaves > 1:
                hold(nodes, b, leaf, -1)
            if nodes[b, leaf].visits == 0:
                if not _expand(edges[b, leaf], output):
                    trunks[b].failed = 1
                    continue
                nodes[b, leaf].reward = output[0]
            _back_up(nodes[b], edges[b], trunks[b], leaf, output[1], discount, root_in_bounds)


def root_visits(tree: Tree, envs: Ints) -> NDArray[np.int32]:
    """Visits of each root action [B, A], 0 for unvisited and illegal ones."""
    return tree.edges["visits"][envs, ROOT]


def tree_depth(tree: Tree, envs: Ints) -> NDArray[np.int32]:
    """Edges on the longest path of each tree [B]."""
    exists = np.arange(tree.nodes.shape[1]) < tree.trunks["n_nodes"][envs, None]
    return np.where(exists, tree.nodes["depth"][envs], 0).max(axis=1).astype(np.int32)

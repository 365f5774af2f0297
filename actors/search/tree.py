"""Search trees of B environments as flat arrays, and the compiled kernels that grow them.

A tree stays with its environment between searches; a call names the `envs` it works on. Node 0 is
the root, later nodes are numbered as they are made, so a parent's number is below its children's.
How they begin is the matter of `planting`, which leaves they grow that of `selection`.
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
Floats = NDArray[np.float64]
Records = NDArray[np.void]

# The numpy error model leaves out Python's test for zero before every division.
kernel = njit(nogil=True, cache=True, error_model="numpy")

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
        ("raw_value", np.float64),  # the model's own
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
        ("first_page", np.int64),  # nodes have pages in their order, or NULL_PAGE: pages are set
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


@kernel
def widen(trunk: np.void, q: float) -> None:
    trunk.low = min(trunk.low, q)
    trunk.high = max(trunk.high, q)


@kernel
def clear_edge(edge: np.void, child: int) -> None:
    edge.child, edge.visits, edge.q = child, 0, 0.0


@kernel
def make_node(
    nodes: Records, edges: Records, window: Ints, trunk: np.void, parent: int, action: int
) -> int:
    """A leaf of one tree below `parent`, empty until it is expanded; returns its number."""
    new = trunk.n_nodes
    trunk.n_nodes += 1
    edges[parent, action].child = new
    node = nodes[new]
    if trunk.first_page != NULL_PAGE:
        node.page = trunk.first_page + new - 1
    node.parent, node.action, node.depth = parent, action, nodes[parent].depth + 1
    node.visits, node.pending, node.value_sum = 0, 0, 0.0
    n_window = window.shape[1]
    for c in range(1, n_window):
        window[new, c - 1] = window[parent, c]
    if n_window > 0:
        window[new, n_window - 1] = node.page
    return new


@kernel
def ask(nodes: Records, window: Ints, trunk: np.void, leaf: int, asked: Ints, m: int) -> None:
    """Fill column `m` with what the model needs to evaluate `leaf`; an idle one for NO_LEAF."""
    n_window = window.shape[1]
    if leaf == NO_LEAF:
        for c in range(n_window):
            asked[c, m] = NULL_PAGE
        asked[n_window, m], asked[n_window + 1, m], asked[n_window + 2, m] = SPARE_PAGE, 0, 0
        return
    node = nodes[leaf]
    for c in range(n_window):
        asked[c, m] = window[node.parent, c]
    asked[n_window, m], asked[n_window + 1, m] = node.page, node.action
    asked[n_window + 2, m] = trunk.step + node.depth


@kernel
def hold(nodes: Records, leaf: int, n: int) -> None:
    """Add `n` pending evaluations to every node of one tree from `leaf` to the root."""
    node = leaf
    nodes[ROOT].pending += n
    while node != ROOT:
        nodes[node].pending += n
        node = nodes[node].parent


@kernel
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


@kernel
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


@kernel
def grow(
    nodes: Records,
    edges: Records,
    trunk: np.void,
    leaf_nodes: Ints,
    outputs: NDArray[np.floating],
    discount: float,
    root_in_bounds: bool,
) -> None:
    """Expand the chosen leaves [K] of one tree and carry their values to its root.

    outputs [K, 2 + A]: reward into the leaf, its value, its policy logits. A tree that meets a
    number that is not finite is marked failed and left alone from then on.
    root_in_bounds: let the root's value into the min-max bounds, as LightZero does.
    """
    n_leaves = len(leaf_nodes)
    for k in range(n_leaves):
        leaf, output = leaf_nodes[k], outputs[k]
        if leaf == NO_LEAF or trunk.failed:
            continue
        if n_leaves > 1:
            hold(nodes, leaf, -1)
        if nodes[leaf].visits == 0:
            if not _expand(edges[leaf], output):
                trunk.failed = 1
                continue
            nodes[leaf].reward, nodes[leaf].raw_value = output[0], output[1]
        _back_up(nodes, edges, trunk, leaf, output[1], discount, root_in_bounds)


def root_visits(tree: Tree, envs: Ints) -> NDArray[np.int32]:
    """Visits of each root action [B, A], 0 for unvisited and illegal ones."""
    return tree.edges["visits"][envs, ROOT]


def tree_depth(tree: Tree, envs: Ints) -> NDArray[np.int32]:
    """Edges on the longest path of each tree [B]."""
    exists = np.arange(tree.nodes.shape[1]) < tree.trunks["n_nodes"][envs, None]
    return np.where(exists, tree.nodes["depth"][envs], 0).max(axis=1).astype(np.int32)

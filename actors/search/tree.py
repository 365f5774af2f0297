"""Search trees of B environments as flat arrays, and the compiled kernels that walk them.

A tree stays with its environment between searches; a call names the `rows` it works on. Node 0 is
the root, later nodes are numbered as they are made, so a parent's number is below its children's.
How leaves are chosen is the matter of `puct`; here is what trees are, and how they grow.
Kernels are serial and release the GIL: parallel threads inside them cost more than they bring.
All values are float64: the trees are small, and a plain Python reference then agrees exactly.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cache.pages import NULL_PAGE

Ints = NDArray[np.int64]

ROOT = 0
UNVISITED = -1
ILLEGAL = -2
NO_LEAF = 0  # in place of a leaf's node: nothing to evaluate
NO_REUSE = -1


class Tree(NamedTuple):
    """Arrays of B trees with up to N + 1 nodes and A actions; beyond `n_nodes` they are garbage.

    child:        [B, N+1, A] int32, node id, UNVISITED or ILLEGAL
    prior:        [B, N+1, A] float64
    q:            [B, N+1, A] float64, reward + discount * child value; 0 where unvisited
    visits:       [B, N+1] int32, of nodes; a fresh root has 1, a leaf not yet evaluated 0
    pending:      [B, N+1] int32, leaves below (or at) a node that are being evaluated
    value_sum:    [B, N+1] float64
    reward:       [B, N+1] float64, on the edge into the node
    parent, action: [B, N+1] int32
    depth:        [B, N+1] int32
    page:         [B, N+1] int64, where the node's keys and values are; not for the root
    window:       [B, N+1, C] int64, pages of the last C steps ending with the node
    n_nodes:      [B] int32, the root included
    bounds:       [B, 2] float64, smallest and largest Q seen
    failed:       [B] bool, the row met a number that is not finite
    first_action: [B] int32, where scanning for the best child starts; decides exact ties
    """

    child: NDArray[np.int32]
    prior: NDArray[np.float64]
    q: NDArray[np.float64]
    visits: NDArray[np.int32]
    pending: NDArray[np.int32]
    value_sum: NDArray[np.float64]
    reward: NDArray[np.float64]
    parent: NDArray[np.int32]
    action: NDArray[np.int32]
    depth: NDArray[np.int32]
    page: NDArray[np.int64]
    window: NDArray[np.int64]
    n_nodes: NDArray[np.int32]
    bounds: NDArray[np.float64]
    failed: NDArray[np.bool_]
    first_action: NDArray[np.int32]


class Leaves(NamedTuple):
    """What a selection asks of the model, K rows per root one after the other.

    All but `node` are views of one int64 buffer: window [B * K, C] pages of the steps before the
    leaf; page, action, step [B * K] of the leaf. node: [B, K] int32, NO_LEAF in idle rows.
    """

    window: NDArray[np.int64]
    page: NDArray[np.int64]
    action: NDArray[np.int64]
    step: NDArray[np.int64]
    node: NDArray[np.int32]


class Roots(NamedTuple):
    """Where the trees of one search begin; arrays over its B roots.

    prior: [B, A] float64, noise included; legal: [B, A] bool; value: [B] float64 (0 instead of
    the model's gives LightZero's statistics at the root); window: [B, C] int64 pages of the last C
    real steps, the root's own last; first_page: [B] int64, of the N pages of the tree's nodes
    first_action: [B] int32; reuse: [B] int64, the root action whose subtree becomes the new tree,
    or NO_REUSE
    """

    prior: NDArray[np.float64]
    legal: NDArray[np.bool_]
    value: NDArray[np.float64]
    window: NDArray[np.int64]
    first_page: NDArray[np.int64]
    first_action: NDArray[np.int32]
    reuse: NDArray[np.int64]


def make_tree(n_rows: int, n_simulations: int, n_actions: int, n_window: int) -> Tree:
    """Allocate trees for `n_rows` environments; `plant` prepares them for a search."""
    nodes = (n_rows, n_simulations + 1)
    edges = (*nodes, n_actions)
    return Tree(
        child=np.full(edges, UNVISITED, np.int32),
        prior=np.zeros(edges),
        q=np.zeros(edges),
        visits=np.zeros(nodes, np.int32),
        pending=np.zeros(nodes, np.int32),
        value_sum=np.zeros(nodes),
        reward=np.zeros(nodes),
        parent=np.zeros(nodes, np.int32),
        action=np.zeros(nodes, np.int32),
        depth=np.zeros(nodes, np.int32),
        page=np.zeros(nodes, np.int64),
        window=np.zeros((*nodes, n_window), np.int64),
        n_nodes=np.ones(n_rows, np.int32),
        bounds=np.zeros((n_rows, 2)),
        failed=np.zeros(n_rows, np.bool_),
        first_action=np.zeros(n_rows, np.int32),
    )


@njit(nogil=True, cache=True)
def _widen(tree: Tree, b: int, q: float) -> None:
    tree.bounds[b, 0] = min(tree.bounds[b, 0], q)
    tree.bounds[b, 1] = max(tree.bounds[b, 1], q)


@njit(nogil=True, cache=True)
def plant(tree: Tree, rows: Ints, roots: Roots) -> None:
    """Start the trees `rows` [B] for a search, keeping subtrees where `roots.reuse` says so.

    Afterwards visits[row, ROOT] - 1 is the number of simulations already in the tree.
    """
    n_actions = tree.child.shape[2]
    for i in range(len(rows)):
        b = rows[i]
        tree.bounds[b, 0], tree.bounds[b, 1] = math.inf, -math.inf
        if roots.reuse[i] == NO_REUSE or not _reroot(tree, b, i, roots):
            tree.n_nodes[b] = 1
            for n in range(1, tree.page.shape[1]):
                tree.page[b, n] = roots.first_page[i] + n - 1
            for a in range(n_actions):
                tree.child[b, ROOT, a], tree.q[b, ROOT, a] = UNVISITED, 0.0
        tree.visits[b, ROOT], tree.value_sum[b, ROOT] = 1, roots.value[i]
        tree.pending[b, ROOT], tree.depth[b, ROOT], tree.reward[b, ROOT] = 0, 0, 0.0
        tree.window[b, ROOT] = roots.window[i]
        tree.first_action[b] = roots.first_action[i]
        tree.failed[b] = not math.isfinite(roots.value[i])
        for a in range(n_actions):
            tree.prior[b, ROOT, a] = roots.prior[i, a]
            child = tree.child[b, ROOT, a]
            if not roots.legal[i, a]:
                tree.child[b, ROOT, a], tree.q[b, ROOT, a] = ILLEGAL, 0.0
            elif child >= 0:
                tree.visits[b, ROOT] += tree.visits[b, child]
                tree.value_sum[b, ROOT] += tree.visits[b, child] * tree.q[b, ROOT, a]


@njit(nogil=True, cache=True)
def _reroot(tree: Tree, b: int, i: int, roots: Roots) -> bool:
    """Make the subtree below a root action the whole tree, in place; False if there is none.

    Kept nodes keep their pages; new nodes get the others. New nodes below them see the real
    observation of the new root, whose page takes the place of the imagined one.
    """
    n_capacity = tree.page.shape[1]
    top = tree.child[b, ROOT, roots.reuse[i]]
    if tree.failed[b] or top < 0 or tree.visits[b, top] == 0:
        return False
    imagined, real = tree.page[b, top], roots.window[i, -1] if roots.window.shape[1] else NULL_PAGE
    new_id = np.full(n_capacity, -1, np.int64)
    is_page_used = np.zeros(n_capacity, np.bool_)
    new_id[top] = ROOT
    n_kept = 1
    for n in range(top + 1, tree.n_nodes[b]):
        parent = new_id[tree.parent[b, n]]
        is_barred = parent == ROOT and not roots.legal[i, tree.action[b, n]]
        if parent >= 0 and not is_barred:
            new_id[n] = n_kept
            n_kept += 1
            is_page_used[tree.page[b, n] - roots.first_page[i]] = True
    for n in range(top, tree.n_nodes[b]):
        if new_id[n] >= 0:
            _move(tree, b, n, new_id, imagined, real)
    tree.n_nodes[b] = n_kept
    n = n_kept
    for k in range(n_capacity - 1):
        if not is_page_used[k]:
            tree.page[b, n] = roots.first_page[i] + k
            n += 1
    return True


@njit(nogil=True, cache=True)
def _move(tree: Tree, b: int, old: int, new_id: Ints, imagined: int, real: int) -> None:
    """Copy node `old` to its new, lower number."""
    new = new_id[old]
    for a in range(tree.child.shape[2]):
        child = tree.child[b, old, a]
        kept = child >= 0 and new_id[child] >= 0
        tree.child[b, new, a] = new_id[child] if kept else UNVISITED
        tree.q[b, new, a] = tree.q[b, old, a] if kept else 0.0
        tree.prior[b, new, a] = tree.prior[b, old, a]
        if kept:
            _widen(tree, b, tree.q[b, new, a])
    tree.visits[b, new], tree.pending[b, new] = tree.visits[b, old], 0
    tree.value_sum[b, new], tree.reward[b, new] = tree.value_sum[b, old], tree.reward[b, old]
    tree.action[b, new], tree.depth[b, new] = tree.action[b, old], tree.depth[b, old] - 1
    if new != ROOT:
        tree.parent[b, new], tree.page[b, new] = new_id[tree.parent[b, old]], tree.page[b, old]
    for c in range(tree.window.shape[2]):
        page = tree.window[b, old, c]
        tree.window[b, new, c] = real if page == imagined else page


@njit(nogil=True, cache=True)
def make_node(tree: Tree, b: int, parent: int, action: int) -> int:
    """A leaf below `parent`, empty until it is expanded; returns its number."""
    new = tree.n_nodes[b]
    tree.n_nodes[b] += 1
    tree.child[b, parent, action] = new
    tree.parent[b, new], tree.action[b, new] = parent, action
    tree.depth[b, new] = tree.depth[b, parent] + 1
    tree.visits[b, new], tree.pending[b, new], tree.value_sum[b, new] = 0, 0, 0.0
    for a in range(tree.child.shape[2]):
        tree.child[b, new, a], tree.q[b, new, a] = UNVISITED, 0.0
    n_window = tree.window.shape[2]
    for c in range(1, n_window):
        tree.window[b, new, c - 1] = tree.window[b, parent, c]
    if n_window > 0:
        tree.window[b, new, n_window - 1] = tree.page[b, new]
    return new


@njit(nogil=True, cache=True)
def hold(tree: Tree, b: int, leaf: int, n: int) -> None:
    """Add `n` pending evaluations to every node from `leaf` to the root."""
    node = leaf
    tree.pending[b, ROOT] += n
    while node != ROOT:
        tree.pending[b, node] += n
        node = tree.parent[b, node]


@njit(nogil=True, cache=True)
def _expand(tree: Tree, b: int, node: int, outputs: NDArray[np.floating]) -> bool:
    """Softmax of the logits (outputs[2:]) into the priors of `node`; False if not finite."""
    n_actions = tree.child.shape[2]
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
        weight = math.exp(outputs[2 + a] - top)
        tree.prior[b, node, a] = weight
        total += weight
    for a in range(n_actions):
        tree.prior[b, node, a] /= total
    return True


@njit(nogil=True, cache=True)
def _back_up(
    tree: Tree, b: int, leaf: int, value: float, discount: float, root_in_bounds: bool
) -> None:
    """Add one visit of `value` to the leaf and, discounted, to all nodes above it."""
    node = leaf
    while node != ROOT:
        tree.visits[b, node] += 1
        tree.value_sum[b, node] += value
        mean = tree.value_sum[b, node] / tree.visits[b, node]
        q = tree.reward[b, node] + discount * mean
        tree.q[b, tree.parent[b, node], tree.action[b, node]] = q
        _widen(tree, b, q)
        value = tree.reward[b, node] + discount * value
        node = tree.parent[b, node]
    tree.visits[b, ROOT] += 1
    tree.value_sum[b, ROOT] += value
    if root_in_bounds:
        _widen(tree, b, discount * tree.value_sum[b, ROOT] / tree.visits[b, ROOT])


@njit(nogil=True, cache=True)
def expand_and_backup(
    tree: Tree,
    rows: Ints,
    discount: float,
    leaves: Leaves,
    outputs: NDArray[np.floating],
    root_in_bounds: bool,
) -> None:
    """Expand the chosen leaves and carry their values to the roots.

    outputs [B * K, 2 + A]: reward into the leaf, its value, its policy logits. A tree that meets a
    number that is not finite is marked failed and left alone from then on.
    root_in_bounds: let the root's value into the min-max bounds, as LightZero does.
    """
    n_leaves = leaves.node.shape[1]
    for i in range(len(rows)):
        b = rows[i]
        for k in range(n_leaves):
            leaf, output = leaves.node[i, k], outputs[i * n_leaves + k]
            if leaf == NO_LEAF or tree.failed[b]:
                continue
            if n_leaves > 1:
                hold(tree, b, leaf, -1)
            if tree.visits[b, leaf] == 0:
                if not _expand(tree, b, leaf, output):
                    tree.failed[b] = True
                    continue
                tree.reward[b, leaf] = output[0]
            _back_up(tree, b, leaf, float(output[1]), discount, root_in_bounds)


def root_visits(tree: Tree, rows: Ints) -> NDArray[np.int32]:
    """Visits of each root action [B, A], 0 for unvisited and illegal ones."""
    child = tree.child[rows, ROOT]
    visits = np.take_along_axis(tree.visits[rows], np.maximum(child, ROOT), axis=1)
    return np.where(child >= 0, visits, 0).astype(np.int32)


def tree_depth(tree: Tree, rows: Ints) -> NDArray[np.int32]:
    """Edges on the longest path of each tree [B]."""
    exists = np.arange(tree.depth.shape[1]) < tree.n_nodes[rows, None]
    return np.where(exists, tree.depth[rows], 0).max(axis=1).astype(np.int32)

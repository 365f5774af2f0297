"""How a tree begins: from a real observation alone, or from what the last search left below the
action that was played.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actors.search.tree import (
    ILLEGAL,
    ROOT,
    UNVISITED,
    Ints,
    Records,
    Tree,
    clear_edge,
    kernel,
    widen,
)
from cache.pages import NULL_PAGE

NO_REUSE = -1


class Roots(NamedTuple):
    """Where the trees of one search begin; arrays over its B roots.

    prior: [B, A] float64, noise included; legal: [B, A] bool; value: [B] float64 (0 instead of
    the model's gives LightZero's statistics at the root); step: [B] int64; window: [B, C] int64
    pages of the last C real steps, the root's own last; first_page: [B] int64, of the N pages of
    the tree's nodes; first_action: [B] int32; reuse: [B] int64, the root action whose subtree
    becomes the new tree, or NO_REUSE
    """

    prior: NDArray[np.float64]
    legal: NDArray[np.bool_]
    value: NDArray[np.float64]
    step: Ints
    window: Ints
    first_page: Ints
    first_action: NDArray[np.int32]
    reuse: Ints


def plant(tree: Tree, envs: Ints, roots: Roots) -> None:
    """Start the trees of `envs` [B], keeping subtrees where `roots.reuse` says so.

    Afterwards visits[env, ROOT] - 1 is the number of simulations already in the tree.
    """
    _plant(*tree, envs, roots)


@kernel
def _plant(
    nodes: Records, edges: Records, window: Ints, trunks: Records, envs: Ints, roots: Roots
) -> None:
    n_actions = edges.shape[2]
    for i in range(len(envs)):
        b = envs[i]
        root, trunk = nodes[b, ROOT], trunks[b]
        trunk.low, trunk.high = math.inf, -math.inf
        if roots.reuse[i] == NO_REUSE or not _reroot(nodes, edges, window, trunks, b, i, roots):
            trunk.n_nodes, trunk.first_page = 1, roots.first_page[i]
            for a in range(n_actions):
                clear_edge(edges[b, ROOT, a], UNVISITED)
        root.visits, root.value_sum = 1, roots.value[i]
        root.raw_value = roots.value[i]
        root.pending, root.depth, root.reward = 0, 0, 0.0
        window[b, ROOT] = roots.window[i]
        trunk.step, trunk.first_action = roots.step[i], roots.first_action[i]
        trunk.failed = 0 if math.isfinite(roots.value[i]) else 1
        for a in range(n_actions):
            edge = edges[b, ROOT, a]
            edge.prior = roots.prior[i, a]
            if not roots.legal[i, a]:
                clear_edge(edge, ILLEGAL)
            root.visits += edge.visits
            root.value_sum += edge.visits * edge.q


@kernel
def _reroot(
    nodes: Records,
    edges: Records,
    window: Ints,
    trunks: Records,
    b: int,
    i: int,
    roots: Roots,
) -> bool:
    """Make the subtree below a root action the whole tree, in place; False if there is none.

    Kept nodes keep their pages; new nodes get the others. New nodes below them see the real
    observation of the new root, whose page takes the place of the imagined one.
    """
    n_capacity, n_nodes = nodes.shape[1], trunks[b].n_nodes
    top = edges[b, ROOT, roots.reuse[i]].child
    if trunks[b].failed or top < 0 or nodes[b, top].visits == 0:
        return False
    imagined = nodes[b, top].page
    real = roots.window[i, -1] if roots.window.shape[1] else NULL_PAGE
    new_id = np.full(n_capacity, -1, np.int64)
    is_page_used = np.zeros(n_capacity, np.bool_)
    new_id[top] = ROOT
    n_kept = 1
    for n in range(top + 1, n_nodes):
        parent = new_id[nodes[b, n].parent]
        is_barred = parent == ROOT and not roots.legal[i, nodes[b, n].action]
        if parent >= 0 and not is_barred:
            new_id[n] = n_kept
            n_kept += 1
            is_page_used[nodes[b, n].page - roots.first_page[i]] = True
    for n in range(top, n_nodes):
        if new_id[n] >= 0:
            _move(nodes[b], edges[b], trunks[b], n, new_id)
            for c in range(window.shape[2]):
                page = window[b, n, c]
                window[b, new_id[n], c] = real if page == imagined else page
    trunks[b].n_nodes, trunks[b].first_page = n_kept, NULL_PAGE
    n = n_kept
    for k in range(n_capacity - 1):
        if not is_page_used[k]:
            nodes[b, n].page = roots.first_page[i] + k
            n += 1
    return True


@kernel
def _move(nodes: Records, edges: Records, trunk: np.void, old: int, new_id: Ints) -> None:
    """Copy node `old` of one tree to its new, lower number."""
    new, parent = new_id[old], nodes[old].parent
    nodes[new] = nodes[old]
    nodes[new].depth -= 1
    nodes[new].parent = new_id[parent] if new != ROOT else ROOT
    for a in range(edges.shape[1]):
        edges[new, a] = edges[old, a]
        edge = edges[new, a]
        if edge.child >= 0 and new_id[edge.child] >= 0:
            edge.child = new_id[edge.child]
            widen(trunk, edge.q)
        else:
            clear_edge(edge, UNVISITED)

"""The most visited part of one search tree, small enough to be sent and drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actors.search.tree import ROOT, Tree

NO_PARENT = -1
MOST_NODES_SHOWN = 48


@dataclass(frozen=True, slots=True)
class TreePicture:
    """M nodes of a tree, parents before their children, the root first.

    parent: [M] int64, place of the parent among these, NO_PARENT for the root
    action: [M] int64, on the edge into the node
    visits: [M] int64
    value:  [M] float64, mean return found from the node on, without the reward into it
    prior:  [M] float64, of the edge into the node; 1 for the root
    n_nodes: of the whole tree
    """

    parent: NDArray[np.int64]
    action: NDArray[np.int64]
    visits: NDArray[np.int64]
    value: NDArray[np.float64]
    prior: NDArray[np.float64]
    n_nodes: int


def draw_tree(tree: Tree, env: int, max_nodes: int = MOST_NODES_SHOWN) -> TreePicture:
    """The `max_nodes` most visited nodes of the tree of `env`.

    A parent has at least the visits and a lower number than its child, so each one's is among them.
    """
    n_nodes = int(tree.trunks["n_nodes"][env])
    nodes = tree.nodes[env, :n_nodes]
    visits = nodes["visits"].astype(np.int64)
    kept = np.sort(np.argsort(-visits, kind="stable")[:max_nodes])
    place = np.full(n_nodes, NO_PARENT, np.int64)
    place[kept] = np.arange(len(kept))
    parent = place[nodes["parent"][kept]]
    action = nodes["action"][kept].astype(np.int64)
    prior = tree.edges["prior"][env, nodes["parent"][kept], action]
    if len(kept):
        assert kept[0] == ROOT, kept
        parent[0], action[0], prior[0] = NO_PARENT, 0, 1.0
    value = nodes["value_sum"][kept] / np.maximum(visits[kept], 1)
    return TreePicture(parent, action, visits[kept], value, prior, n_nodes)

"""PUCT: which child of a node to visit next.

MuZero's rule (arXiv 1911.08265, appendix B) with LightZero's running mean Q for unvisited
children. With K leaves a call, a leaf that is being evaluated counts as a visit of the lowest
value seen (virtual loss, Chaslot et al. 2008), so that the others look elsewhere.
"""

from __future__ import annotations

import math

import numpy as np

from actors.search.tree import ILLEGAL, ROOT, Floats, Records, kernel


@kernel
def _scaled(q: float, low: float, high: float, delta_max: float) -> float:
    """Min-max normalisation as LightZero does it: raw while only one value was seen."""
    if high > low:
        q = (q - low) / max(high - low, delta_max)
    return min(max(q, 0.0), 1.0)


@kernel
def mean_q(edges: Records, node: int, parent_q: float) -> float:
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
def best_action(
    nodes: Records,
    edges: Records,
    trunk: np.void,
    n: int,
    q_unvisited: float,
    with_pending: bool,
    constants: Floats,
) -> int:
    """Child with the highest PUCT score; exact ties go to the higher prior, then scan order."""
    n_actions = edges.shape[1]
    n_children_visits = nodes[n].visits - 1 + nodes[n].pending
    low, high = trunk.low, trunk.high
    pb_c_base, pb_c_init, delta_max = constants[0], constants[1], constants[2]
    pb_c = math.log((n_children_visits + pb_c_base + 1.0) / pb_c_base) + pb_c_init
    pb_c *= math.sqrt(n_children_visits)
    unvisited = _scaled(q_unvisited, low, high, delta_max)
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

"""Gumbel MuZero (Danihelka et al., ICLR 2022): which child to visit next, and what was learned.

The root divides its simulations among a few sampled actions by sequential halving; below it,
visits follow the improved policy. Both rest on completed Q values: an unvisited child takes the
node's mixed value, so that a policy is improved by however few visits there were.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from actors.search.tree import (
    ILLEGAL,
    ROOT,
    Floats,
    Ints,
    Records,
    Tree,
    kernel,
)

SMALLEST_SPREAD = 1e-8  # of Q values that are stretched to [0, 1]
SMALLEST_PRIOR = 1e-300


def halving_schedule(max_considered: int, n_simulations: int) -> Ints:
    """[max_considered + 1, n_simulations] visits that the action chosen next must have.

    Row m is for m considered actions: every phase visits the ones still in equally often, then
    goes on with the better half (paper, section 3.4), two at least.
    """
    table = np.zeros((max_considered + 1, n_simulations), np.int64)
    table[:2] = np.arange(n_simulations)
    for m in range(2, max_considered + 1):
        n_phases, n_in, done, chosen = math.ceil(math.log2(m)), m, 0, []
        while len(chosen) < n_simulations:
            for _ in range(max(1, n_simulations // (n_phases * n_in))):
                chosen += [done] * n_in
                done += 1
            n_in = max(2, n_in // 2)
        table[m] = chosen[:n_simulations]
    return table


@kernel
def _complete(edges: Records, node: np.void, constants: Floats, out: Floats) -> None:
    """Weigh each child's completed Q, stretched to [0, 1], as an addend to its logit; out [A]."""
    n_actions = len(out)
    mass, weighted, n_visits, most = 0.0, 0.0, 0, 0
    for a in range(n_actions):
        edge = edges[a]
        if edge.visits > 0:
            prior = max(edge.prior, SMALLEST_PRIOR)
            mass += prior
            weighted += prior * edge.q
            n_visits += edge.visits
            most = max(most, edge.visits)
    mixed = node.raw_value
    if n_visits > 0:
        mixed = (node.raw_value + n_visits * (weighted / mass)) / (n_visits + 1)
    low, high = math.inf, -math.inf
    for a in range(n_actions):
        out[a] = edges[a].q if edges[a].visits > 0 else mixed
        low, high = min(low, out[a]), max(high, out[a])
    weight = (constants[0] + most) * constants[1] / max(high - low, SMALLEST_SPREAD)
    for a in range(n_actions):
        out[a] = (out[a] - low) * weight


@kernel
def _improve(edges: Records, node: np.void, constants: Floats, out: Floats) -> None:
    """Softmax of logits plus completed Q over the legal children; out [A]."""
    _complete(edges, node, constants, out)
    top, total = -math.inf, 0.0
    for a in range(len(out)):
        if edges[a].child == ILLEGAL:
            out[a] = -math.inf
        else:
            out[a] += math.log(max(edges[a].prior, SMALLEST_PRIOR))
        top = max(top, out[a])
    for a in range(len(out)):
        out[a] = math.exp(out[a] - top)
        total += out[a]
    for a in range(len(out)):
        out[a] /= total


@kernel
def _visits(nodes: Records, edge: np.void) -> int:
    """Visits of a child, those on their way included."""
    return edge.visits + nodes[edge.child].pending if edge.child > 0 else 0


@kernel
def best_action(nodes: Records, edges: Records, n: int, constants: Floats, scratch: Floats) -> int:
    """Below the root: the child that brings visit shares closest to the improved policy."""
    _improve(edges[n], nodes[n], constants, scratch)
    n_visits = 0
    for a in range(len(scratch)):
        n_visits += _visits(nodes, edges[n, a])
    best, best_score = -1, -math.inf
    for a in range(len(scratch)):
        score = scratch[a] - _visits(nodes, edges[n, a]) / (1 + n_visits)
        if score > best_score:
            best, best_score = a, score
    return best


@kernel
def best_root_action(
    nodes: Records,
    edges: Records,
    constants: Floats,
    noise: Floats,
    n_wanted_visits: int,
    scratch: Floats,
) -> int:
    """At the root: the best by noise, logit and Q among actions with so many visits, or -1."""
    _complete(edges[ROOT], nodes[ROOT], constants, scratch)
    best, best_score = -1, -math.inf
    for a in range(len(scratch)):
        edge = edges[ROOT, a]
        if edge.child == ILLEGAL or _visits(nodes, edge) != n_wanted_visits:
            continue
        score = noise[a] + math.log(max(edge.prior, SMALLEST_PRIOR)) + scratch[a]
        if score > best_score:
            best, best_score = a, score
    return best


@kernel
def _conclude(
    nodes: Records,
    edges: Records,
    envs: Ints,
    constants: Floats,
    noise: Floats,
    policy: Floats,
    action: Ints,
) -> None:
    scratch = np.empty(edges.shape[2])
    for i in range(len(envs)):
        b, most = envs[i], 0
        for a in range(edges.shape[2]):
            most = max(most, edges[b, ROOT, a].visits)
        action[i] = best_root_action(nodes[b], edges[b], constants, noise[b], most, scratch)
        _improve(edges[b, ROOT], nodes[b, ROOT], constants, policy[i])


def conclude(
    tree: Tree, envs: Ints, constants: Floats, noise: Floats
) -> tuple[NDArray[np.float64], Ints]:
    """Improved root policies [B, A] and the actions [B] to play, best of the most visited ones."""
    policy = np.zeros((len(envs), tree.edges.shape[2]))
    action = np.zeros(len(envs), np.int64)
    _conclude(tree.nodes, tree.edges, envs, constants, noise, policy, action)
    return policy, action

"""The compiled kernels against a search over dictionaries."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.search.tree import (
    Leaves,
    Puct,
    expand_and_backup,
    make_tree,
    plant,
    root_visits,
    select,
)

PUCT = Puct(pb_c_base=19652.0, pb_c_init=1.25, value_delta_max=0.01, discount=0.97)


def make_node(prior, value_sum=0.0, visits=0, reward=0.0):
    return dict(prior=prior, children={}, sum=value_sum, visits=visits, reward=reward)


def q_of(node):
    return node["reward"] + PUCT.discount * node["sum"] / node["visits"]


def choose(node, mean_q, bounds, scan):
    def score(a):
        child = node["children"].get(a)
        q = q_of(child) if child else mean_q
        low, high = bounds
        if high > low:
            q = (q - low) / max(high - low, PUCT.value_delta_max)
        n = node["visits"] - 1
        pb_c = math.log((n + PUCT.pb_c_base + 1.0) / PUCT.pb_c_base) + PUCT.pb_c_init
        pb_c *= math.sqrt(n)
        prior = node["prior"][a]
        return pb_c * prior / ((child["visits"] if child else 0) + 1) + min(max(q, 0.0), 1.0), prior

    return max(scan, key=score)  # the first of equals, as scanned


def reference_search(prior, legal, root_value, outputs, first_action):
    """Visits, Q, mean value, depth and leaf paths of one root; outputs [N, 2 + A]."""
    n_actions = len(prior)
    root, bounds, paths = make_node(prior, root_value, 1), [math.inf, -math.inf], []
    rotated = [(k + first_action) % n_actions for k in range(n_actions)]
    for reward, value, *logits in outputs.tolist():
        node, path, actions, mean_q = root, [root], [], 0.0
        while node is not None:
            qs = [q_of(node["children"][a]) for a in sorted(node["children"])]
            alone = node is root and qs
            mean_q = sum(qs) / len(qs) if alone else (mean_q + sum(qs)) / (len(qs) + 1)
            scan = [a for a in rotated if node is not root or legal[a]]
            actions.append(choose(node, mean_q, bounds, scan))
            parent, node = node, node["children"].get(actions[-1])
            path += [node] if node else []
        weights = [math.exp(x - max(logits)) for x in logits]
        leaf = make_node([w / sum(weights) for w in weights], reward=reward)
        parent["children"][actions[-1]] = leaf
        for node in reversed([*path[1:], leaf]):
            node["visits"] += 1
            node["sum"] += value
            bounds = [min(bounds[0], q_of(node)), max(bounds[1], q_of(node))]
            value = node["reward"] + PUCT.discount * value
        root["visits"] += 1
        root["sum"] += value
        paths.append(actions)
    kids = root["children"]
    visits = [kids[a]["visits"] if a in kids else 0 for a in range(n_actions)]
    q = [q_of(kids[a]) if a in kids else 0.0 for a in range(n_actions)]
    return visits, q, root["sum"] / root["visits"], paths


def run_kernels(prior, legal, value, outputs, first_action, n_window=2):
    n_roots, n_actions = prior.shape
    n_simulations = len(outputs)
    tree = make_tree(n_roots, n_simulations, n_actions, n_window)
    root_window = np.full((n_roots, n_window), -1)
    plant(tree, prior, legal, value, root_window, first_action)
    ids = np.zeros((3, n_roots), np.int64)
    leaves = Leaves(np.zeros((n_roots, n_window), np.int64), *ids)
    root_step, first_page = np.arange(n_roots) * 10, np.arange(n_roots) * 1000
    asked = []
    for simulation in range(n_simulations):
        select(tree, simulation, PUCT, root_step, first_page, leaves)
        asked.append([np.copy(x) for x in leaves])
        expand_and_backup(tree, simulation, PUCT, outputs[simulation], False)
    return tree, asked


def draw_problem(seed, n_roots, n_actions, n_simulations):
    rng = np.random.default_rng(seed)
    legal = rng.random((n_roots, n_actions)) < 0.7
    legal[np.arange(n_roots), rng.integers(n_actions, size=n_roots)] = True
    prior = np.where(legal, rng.random((n_roots, n_actions)), 0.0)
    prior /= prior.sum(axis=1, keepdims=True)
    outputs = rng.normal(size=(n_simulations, n_roots, 2 + n_actions)).astype(np.float32)
    outputs *= rng.choice([0.1, 1.0, 10.0])
    first_action = rng.integers(n_actions, size=n_roots).astype(np.int32)
    return prior, legal, rng.normal(size=n_roots), outputs, first_action


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 9), st.integers(1, 60))
def test_kernels_equal_the_dictionary_search(seed, n_roots, n_actions, n_simulations):
    prior, legal, value, outputs, first = draw_problem(seed, n_roots, n_actions, n_simulations)
    tree, asked = run_kernels(prior, legal, value, outputs, first)
    for b in range(n_roots):
        visits, q, mean, paths = reference_search(
            prior[b].tolist(), legal[b], float(value[b]), outputs[:, b], int(first[b])
        )
        assert root_visits(tree)[b].tolist() == visits
        np.testing.assert_allclose(tree.q[b, 0], q, atol=1e-12)
        np.testing.assert_allclose(tree.value_sum[b, 0] / tree.visits[b, 0], mean, atol=1e-12)
        check_leaves(b, asked, paths)


def check_leaves(b, asked, paths):
    """Each leaf asks for the pages of its last two ancestors, in order."""
    node_of = {(): None}
    for simulation, path in enumerate(paths):
        window, page, action, step = (x[b] for x in asked[simulation])
        node_of[tuple(path)] = b * 1000 + simulation
        ancestors = [node_of[tuple(path[:d])] for d in range(1, len(path))]
        wanted = [-1, -1, *ancestors][-2:]
        assert window.tolist() == wanted
        assert (page, action, step) == (b * 1000 + simulation, path[-1], b * 10 + len(path))


def test_exact_ties_go_to_the_higher_prior_then_in_scan_order():
    prior = np.array([[0.2, 0.5, 0.3], [1 / 3, 1 / 3, 1 / 3]])
    outputs = np.zeros((1, 2, 5), np.float32)
    _, asked = run_kernels(
        prior, np.ones((2, 3), np.bool_), np.zeros(2), outputs, np.array([2, 2], np.int32)
    )
    assert asked[0][2].tolist() == [1, 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 1, 3])
def test_a_number_that_is_not_finite_fails_its_row_only(bad, column):
    prior, legal, value, outputs, first = draw_problem(3, 3, 4, 20)
    clean, _ = run_kernels(prior, legal, value, outputs, first)
    outputs[7, 1, column] = bad
    tree, _ = run_kernels(prior, legal, value, outputs, first)
    assert tree.failed.tolist() == [False, True, False]
    for row in (0, 2):
        assert root_visits(tree)[row].tolist() == root_visits(clean)[row].tolist()
        np.testing.assert_array_equal(tree.q[row], clean.q[row])
    assert np.isfinite(tree.value_sum[1]).all()


def test_root_in_bounds_widens_the_scale_as_lightzero_does():
    prior, legal, value, outputs, first = draw_problem(5, 1, 3, 1)
    tree, _ = run_kernels(prior, legal, value, outputs, first)
    assert tree.bounds[0, 0] == tree.bounds[0, 1] == tree.q[0, 0].sum()
    select(tree, 0, PUCT, np.zeros(1, np.int64), np.zeros(1, np.int64), make_leaves(1, 2))
    plant(tree, prior, legal, value, np.zeros((1, 2), np.int64), first)
    select(tree, 0, PUCT, np.zeros(1, np.int64), np.zeros(1, np.int64), make_leaves(1, 2))
    expand_and_backup(tree, 0, PUCT, outputs[0], True)
    root = PUCT.discount * tree.value_sum[0, 0] / tree.visits[0, 0]
    q = tree.q[0, 0].sum()
    assert sorted(tree.bounds[0]) == sorted((root, q))


def make_leaves(n_roots, n_window):
    return Leaves(np.zeros((n_roots, n_window), np.int64), *np.zeros((3, n_roots), np.int64))

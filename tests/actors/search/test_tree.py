"""The compiled kernels against a search over dictionaries."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.search.config import SearchConfig
from actors.search.planting import NO_REUSE, Roots, plant
from actors.search.selection import make_rule, select
from actors.search.tree import (
    NO_LEAF,
    ROOT,
    Leaves,
    make_tree,
    root_visits,
)

PUCT = make_rule(SearchConfig(), n_envs=1, n_actions=1, discount=0.97)


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
            q = (q - low) / max(high - low, PUCT.constants[2])
        n = node["visits"] - 1
        pb_c = math.log((n + PUCT.constants[0] + 1.0) / PUCT.constants[0]) + PUCT.constants[1]
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


def make_roots(prior, legal, value, first_action, n_window=2, reuse=None):
    rows = np.arange(len(prior))
    return Roots(
        prior=prior,
        legal=legal,
        value=value,
        step=rows * 10,
        window=np.full((len(prior), n_window), -1),
        first_page=(rows + 1) * 1000,
        first_action=first_action,
        reuse=np.full(len(prior), NO_REUSE) if reuse is None else reuse,
    )


def make_leaves(n_roots, n_leaves=1, n_window=2):
    asked = np.zeros((n_window + 3, n_roots * n_leaves), np.int64)
    return Leaves(asked, np.zeros((n_roots, n_leaves), np.int64))


def run_kernels(prior, legal, value, outputs, first_action):
    """One leaf a call; outputs [N, B, 2 + A] come in the order of the simulations."""
    rows, n_simulations = np.arange(len(prior)), len(outputs)
    tree = make_tree(len(prior), n_simulations, prior.shape[1], 2)
    plant(tree, rows, make_roots(prior, legal, value, first_action))
    leaves, asked = make_leaves(len(prior)), []
    select(tree, rows, PUCT, n_simulations, leaves)
    for simulation in range(n_simulations):
        asked.append(leaves.asked.copy())
        n_chosen = select(tree, rows, PUCT, n_simulations, leaves, outputs[simulation])
    assert n_chosen == 0
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


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 9), st.integers(1, 60))
def test_kernels_equal_the_dictionary_search(seed, n_roots, n_actions, n_simulations):
    prior, legal, value, outputs, first = draw_problem(seed, n_roots, n_actions, n_simulations)
    tree, asked = run_kernels(prior, legal, value, outputs, first)
    for b in range(n_roots):
        visits, q, mean, paths = reference_search(
            prior[b].tolist(), legal[b], float(value[b]), outputs[:, b], int(first[b])
        )
        assert root_visits(tree, np.array([b]))[0].tolist() == visits
        np.testing.assert_allclose(tree.edges["q"][b, 0], q, atol=1e-12)
        np.testing.assert_allclose(
            tree.nodes["value_sum"][b, 0] / tree.nodes["visits"][b, 0], mean, atol=1e-12
        )
        check_leaves(b, asked, paths)


def check_leaves(b, asked, paths):
    """Each leaf asks for the pages of its last two ancestors, in order."""
    node_of = {(): None}
    for simulation, path in enumerate(paths):
        *window, page, action, step = asked[simulation][:, b].tolist()
        node_of[tuple(path)] = (b + 1) * 1000 + simulation
        ancestors = [node_of[tuple(path[:d])] for d in range(1, len(path))]
        wanted = [-1, -1, *ancestors][-2:]
        assert window == wanted
        assert (page, action, step) == ((b + 1) * 1000 + simulation, path[-1], b * 10 + len(path))


def test_exact_ties_go_to_the_higher_prior_then_in_scan_order():
    prior = np.array([[0.2, 0.5, 0.3], [1 / 3, 1 / 3, 1 / 3]])
    outputs = np.zeros((1, 2, 5), np.float32)
    _, asked = run_kernels(
        prior, np.ones((2, 3), np.bool_), np.zeros(2), outputs, np.array([2, 2], np.int32)
    )
    assert asked[0][-2].tolist() == [1, 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 1, 3])
def test_a_number_that_is_not_finite_fails_its_row_only(bad, column):
    prior, legal, value, outputs, first = draw_problem(3, 3, 4, 20)
    clean, _ = run_kernels(prior, legal, value, outputs, first)
    outputs[7, 1, column] = bad
    tree, _ = run_kernels(prior, legal, value, outputs, first)
    assert tree.trunks["failed"].tolist() == [0, 1, 0]
    for row in (0, 2):
        assert (
            root_visits(tree, np.arange(3))[row].tolist()
            == root_visits(clean, np.arange(3))[row].tolist()
        )
        np.testing.assert_array_equal(tree.edges["q"][row], clean.edges["q"][row])
    assert np.isfinite(tree.nodes["value_sum"][1]).all()


def test_root_in_bounds_widens_the_scale_as_lightzero_does():
    prior, legal, value, outputs, first = draw_problem(5, 1, 3, 1)
    tree, _ = run_kernels(prior, legal, value, outputs, first)
    assert tree.trunks["low"][0] == tree.trunks["high"][0] == tree.edges["q"][0, 0].sum()
    rows, leaves = np.arange(1), make_leaves(1)
    plant(tree, rows, make_roots(prior, legal, value, first))
    select(tree, rows, PUCT, 1, leaves)
    select(tree, rows, PUCT._replace(root_in_bounds=True), 1, leaves, outputs[0])
    root = PUCT.discount * tree.nodes["value_sum"][0, 0] / tree.nodes["visits"][0, 0]
    q = tree.edges["q"][0, 0].sum()
    assert sorted((tree.trunks["low"][0], tree.trunks["high"][0])) == sorted((root, q))


def run_batched(problem, n_simulations, n_leaves):
    """K leaves a call; what the model says depends on the leaf's path alone, as for a real one."""
    prior, legal, value, _, first = problem
    n_roots, n_actions = prior.shape
    rows, leaves = np.arange(n_roots), make_leaves(n_roots, n_leaves)
    tree = make_tree(n_roots, n_simulations, n_actions, 2)
    plant(tree, rows, make_roots(prior, legal, value, first))
    n_calls = 0
    n_chosen = select(tree, rows, PUCT, n_simulations, leaves)
    while n_chosen:
        outputs = np.zeros((n_roots * n_leaves, 2 + n_actions))
        for m in range(len(outputs)):
            b, node, key = m // n_leaves, leaves.node.ravel()[m], []
            while node != ROOT:
                key.append(int(tree.nodes["action"][b, node]))
                node = tree.nodes["parent"][b, node]
            outputs[m] = np.random.default_rng([b, *key]).normal(size=2 + n_actions)
        n_chosen = select(tree, rows, PUCT, n_simulations, leaves, outputs)
        n_calls += 1
    return tree, n_calls


def check_statistics(tree, b):
    """Every node's visits and Q follow from those below it; nothing is left pending."""
    n = tree.trunks["n_nodes"][b]
    assert not tree.nodes["pending"][b, :n].any() and (tree.nodes["visits"][b, :n] > 0).all()
    for node in range(n):
        children = [int(c) for c in tree.edges["child"][b, node] if c > 0]
        assert tree.nodes["visits"][b, node] >= 1 + tree.nodes["visits"][b, children].sum()
        for child in children:
            assert tree.nodes["parent"][b, child] == node < child
            mean = tree.nodes["value_sum"][b, child] / tree.nodes["visits"][b, child]
            q = tree.nodes["reward"][b, child] + PUCT.discount * mean
            assert tree.edges["q"][b, node, tree.nodes["action"][b, child]] == pytest.approx(q)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    n_roots=st.integers(1, 4),
    n_actions=st.integers(1, 6),
    n_simulations=st.integers(1, 50),
    n_leaves=st.integers(1, 9),
)
def test_batches_of_leaves_end_with_all_visits(seed, n_roots, n_actions, n_simulations, n_leaves):
    problem = draw_problem(seed, n_roots, n_actions, 1)
    tree, n_calls = run_batched(problem, n_simulations, n_leaves)
    assert n_calls == -(-n_simulations // n_leaves)
    for b in range(n_roots):
        check_statistics(tree, b)
        assert root_visits(tree, np.array([b])).sum() == n_simulations


def test_virtual_loss_spreads_the_leaves_of_a_call():
    prior, legal = np.array([[0.4, 0.3, 0.3]]), np.ones((1, 3), np.bool_)
    rows, leaves = np.arange(1), make_leaves(1, n_leaves=3)
    tree = make_tree(1, 9, 3, 2)
    plant(tree, rows, make_roots(prior, legal, np.zeros(1), np.zeros(1, np.int32)))
    assert select(tree, rows, PUCT, 9, leaves) == 3
    assert sorted(leaves.asked[-2].tolist()) == [0, 1, 2] and leaves.node.tolist() == [[1, 2, 3]]
    assert tree.nodes["pending"][0, :4].tolist() == [3, 1, 1, 1]


def test_a_leaf_chosen_twice_is_evaluated_to_the_same_result():
    """One action: the second leaf of a call can only be the first one again."""
    legal = np.ones((1, 1), np.bool_)
    rows, leaves = np.arange(1), make_leaves(1, n_leaves=2)
    tree = make_tree(1, 3, 1, 2)
    plant(tree, rows, make_roots(np.ones((1, 1)), legal, np.zeros(1), np.zeros(1, np.int32)))
    select(tree, rows, PUCT, 3, leaves)
    assert leaves.node.tolist() == [[1, 1]] and leaves.asked[-3].tolist() == [1000, 1000]
    answers = np.array([[1.0, 4.0, 0.0]] * 2)
    puct = PUCT._replace(discount=0.5)
    n_chosen = select(tree, rows, puct, 3, leaves, answers)
    assert (
        tree.nodes["visits"][0, 1],
        tree.nodes["value_sum"][0, 1],
        tree.edges["q"][0, 0, 0],
    ) == (2, 8.0, 3.0)
    assert n_chosen == 1  # the third of three simulations
    assert leaves.node.tolist() == [[2, NO_LEAF]]


def subtree(tree, b, top):
    """Path below `top` -> what its node holds."""
    found, paths = {}, {top: ()}
    for node in range(top, tree.trunks["n_nodes"][b]):
        if node != top:
            parent = tree.nodes["parent"][b, node]
            if parent not in paths:
                continue
            paths[node] = (*paths[parent], int(tree.nodes["action"][b, node]))
        found[paths[node]] = dict(
            visits=int(tree.nodes["visits"][b, node]),
            value_sum=tree.nodes["value_sum"][b, node],
            prior=tree.edges["prior"][b, node].tolist(),
            page=int(tree.nodes["page"][b, node]),
            window=tree.window[b, node].tolist(),
            depth=int(tree.nodes["depth"][b, node] - tree.nodes["depth"][b, top]),
        )
    return found


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(2, 40), st.integers(1, 4))
def test_a_reused_subtree_keeps_its_statistics_and_pages(seed, n_actions, n_simulations, n_leaves):
    rng = np.random.default_rng(seed)
    problem = draw_problem(seed, 2, n_actions, 1)
    tree, _ = run_batched(problem, n_simulations, n_leaves)
    prior, legal, value, _, first = draw_problem(seed + 1, 2, n_actions, 1)
    reuse = rng.integers(n_actions, size=2)
    tops = tree.edges["child"][np.arange(2), ROOT, reuse]
    before = [subtree(tree, b, top) if top > 0 else None for b, top in enumerate(tops)]
    roots = make_roots(prior, legal, value, first, reuse=reuse)
    roots.window[:] = [[-7, 5000], [-7, 6000]]
    plant(tree, np.arange(2), roots)
    for b in range(2):
        first = (b + 1) * 1000
        own_pages = set(range(first, first + n_simulations))
        if tree.trunks["first_page"][b] == 0:  # kept nodes and those to come
            assert set(tree.nodes["page"][b, 1:].tolist()) == own_pages
        after = subtree(tree, b, ROOT)
        kept = before[b] or {(): None}
        kept = {path: v for path, v in kept.items() if not path or legal[b, path[0]]}
        assert after.keys() == kept.keys()
        for path in after.keys() - {()}:
            was = dict(kept[path])
            imagined, real = kept[()]["page"], 5000 + 1000 * b
            was["window"] = [real if page == imagined else page for page in was["window"]]
            assert after[path] == was
        below = [a for a in range(n_actions) if (a,) in after]
        n_kept_visits = sum(after[a,]["visits"] for a in below)
        assert tree.nodes["visits"][b, ROOT] == 1 + n_kept_visits < n_simulations + 1
        returns = sum(after[a,]["visits"] * tree.edges["q"][b, ROOT, a] for a in below)
        np.testing.assert_allclose(tree.nodes["value_sum"][b, ROOT], value[b] + returns)
        np.testing.assert_array_equal(tree.edges["prior"][b, ROOT], prior[b])
        visited = [
            tree.edges["q"][b, n][tree.edges["child"][b, n] > 0]
            for n in range(tree.trunks["n_nodes"][b])
        ]
        seen = np.concatenate(visited)
        if len(seen):
            assert tree.trunks[["low", "high"]][b].item() == (seen.min(), seen.max())

"""Gumbel search against mctx, and both variants on a game whose best play is known.

The comparison needs `python benchmarks/peers.py mctx` (mctx 0.0.6) once; it is skipped without.
"""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from actors.search import gumbel
from actors.search.choice import sample_actions
from actors.search.config import SearchConfig
from actors.search.planting import NO_REUSE, Roots, plant
from actors.search.selection import make_rule, select
from actors.search.tree import Leaves, make_tree, root_visits

MCTX = Path(__file__).parents[3] / ".peers" / "mctx" / "bin" / "python"


def search(rule, logits, value, legal, evaluate, n_simulations, n_leaves=1):
    """A tree over `evaluate(state, action) -> (reward, value, logits, state)` from state 0."""
    n_roots, n_actions = logits.shape
    prior = np.where(legal, np.exp(logits - logits.max(axis=1, keepdims=True)), 0.0)
    rows = np.arange(n_roots)
    zeros, window = np.zeros(n_roots, np.int64), np.zeros((n_roots, 1), np.int64)
    first_page = 2 + rows * n_simulations
    tree = make_tree(n_roots, n_simulations, n_actions, 1)
    roots = Roots(
        prior=prior / prior.sum(axis=1, keepdims=True),
        legal=legal,
        value=value,
        step=zeros,
        window=window,
        first_page=first_page,
        first_action=zeros.astype(np.int32),
        reuse=np.full(n_roots, NO_REUSE),
    )
    plant(tree, rows, roots)
    leaves = Leaves(
        np.zeros((4, n_roots * n_leaves), np.int64), np.zeros((n_roots, n_leaves), np.int64)
    )
    states = np.zeros((n_roots, n_simulations + 1), np.int64)
    outputs = np.zeros((n_roots * n_leaves, 2 + n_actions))
    n_chosen = select(tree, rows, rule, n_simulations, leaves)
    while n_chosen:
        for m, node in enumerate(leaves.node.ravel()):
            b = m // n_leaves
            if node:
                parent, action = tree.nodes[["parent", "action"]][b, node].item()
                reward, v, child_logits, states[b, node] = evaluate(states[b, parent], action)
                outputs[m] = [reward, v, *child_logits]
        n_chosen = select(tree, rows, rule, n_simulations, leaves, outputs)
    return tree


def make(n_roots, n_actions, discount=0.9, **settings):
    config = SearchConfig(**{"variant": "gumbel", **settings})
    rule = make_rule(config, n_roots, n_actions, discount)
    rule.n_considered[:] = len(rule.schedule) - 1
    return rule


def draw_problem(rng, n_actions, n_simulations, max_considered):
    """25 roots of one shape: every new shape costs the other system a compilation."""
    legal = rng.random((25, n_actions)) < 0.75
    legal[np.arange(25), rng.integers(n_actions, size=25)] = True
    return dict(
        logits=rng.normal(size=legal.shape),
        value=rng.normal(size=25),
        legal=legal,
        outputs=rng.normal(size=(997, 2 + n_actions)),
        discount=rng.uniform(0.5, 1.0),
        n_simulations=n_simulations,
        max_considered=max_considered,
    )


@pytest.mark.timeout(300)
@pytest.mark.skipif(not MCTX.exists(), reason="run `python benchmarks/peers.py mctx` first")
def test_it_equals_mctx(tmp_path):
    rng, shapes = np.random.default_rng(0), [(2, 25, 2), (5, 40, 16), (9, 33, 4), (4, 3, 4)]
    drawn = [draw_problem(rng, *shape) for shape in shapes]
    problems = {"n_problems": len(drawn)}
    for i, problem in enumerate(drawn):
        problems |= {f"{i}/{key}": value for key, value in problem.items()}
    np.savez(tmp_path / "problems.npz", **problems)
    script = Path(__file__).with_name("mctx_searches.py")
    files = [tmp_path / "problems.npz", tmp_path / "answers.npz"]
    subprocess.run([MCTX, script, *files], check=True)
    answers = np.load(files[1])
    for i, problem in enumerate(drawn):
        n_roots, n_actions = problem["logits"].shape
        table = problem["outputs"]

        def evaluate(state, action, table=table, n_actions=n_actions):
            following = (state * n_actions + action + 1) % len(table)
            return table[following, 0], table[following, 1], table[following, 2:], following

        rule = make(
            n_roots,
            n_actions,
            problem["discount"],
            n_simulations=problem["n_simulations"],
            max_considered_actions=problem["max_considered"],
        )
        rule.n_considered[:] = np.minimum(problem["legal"].sum(axis=1), len(rule.schedule) - 1)
        tree = search(
            rule,
            problem["logits"],
            problem["value"],
            problem["legal"],
            evaluate,
            problem["n_simulations"],
        )
        policy, action = gumbel.conclude(tree, np.arange(n_roots), rule.constants, rule.noise)
        np.testing.assert_array_equal(
            root_visits(tree, np.arange(n_roots)), answers[f"{i}/visits"], str(i)
        )
        np.testing.assert_allclose(policy, answers[f"{i}/policy"], atol=1e-6)
        np.testing.assert_array_equal(action, answers[f"{i}/action"])


class Ladder:
    """Three rungs up by action 2 pay 1 at the top; every other action starts over.

    The model knows the rules, but neither values (0) nor what to do: its policy prefers action 1.
    """

    logits = np.log([0.2, 0.6, 0.2])
    discount = 0.95
    n_rungs = 3

    def step(self, rung, action):
        if action == 2:
            return (1.0, 0) if rung + 1 == self.n_rungs else (0.0, rung + 1)
        return 0.0, 0

    def evaluate(self, rung, action):
        reward, following = self.step(int(rung), int(action))
        return reward, 0.0, self.logits, following

    def best_values(self):
        """Value iteration."""
        values = np.zeros(self.n_rungs)
        for _ in range(2000):
            values = self.q_values(values).max(axis=1)
        return values

    def q_values(self, values):
        q = np.zeros((self.n_rungs, 3))
        for rung in range(self.n_rungs):
            for action in range(3):
                reward, following = self.step(rung, action)
                q[rung, action] = reward + self.discount * values[following]
        return q


def root_policy(variant, n_simulations, n_leaves=1):
    """What a search from the lowest rung teaches."""
    game = Ladder()
    rule = make(1, 3, game.discount, variant=variant, n_simulations=n_simulations)
    tree = search(
        rule,
        game.logits[None],
        np.zeros(1),
        np.ones((1, 3), np.bool_),
        game.evaluate,
        n_simulations,
        n_leaves,
    )
    if variant == "gumbel":
        return gumbel.conclude(tree, np.arange(1), rule.constants, rule.noise)[0][0]
    return root_visits(tree, np.arange(1))[0] / n_simulations


@pytest.mark.parametrize("n_leaves", [1, 4])
@pytest.mark.parametrize("variant", ["puct", "gumbel"])
def test_search_beats_its_own_prior_where_the_best_play_is_known(variant, n_leaves):
    game = Ladder()
    q = game.q_values(game.best_values())[0]
    assert q.argmax() == 2
    prior_value = (np.exp(game.logits) * q).sum()
    values = [(root_policy(variant, n, n_leaves) * q).sum() for n in (8, 400)]
    assert values[-1] > prior_value + 0.5 * (q.max() - prior_value)


@pytest.mark.parametrize("variant", ["puct", "gumbel"])
def test_more_simulations_correct_a_bad_prior(variant):
    few, many = root_policy(variant, 4)[2], root_policy(variant, 400)[2]
    assert few < 0.5 < many


def test_halving_schedules_give_every_considered_action_its_turn():
    table = gumbel.halving_schedule(max_considered=4, n_simulations=16)
    assert table[1].tolist() == list(range(16))
    assert table[4, :8].tolist() == [0] * 4 + [1] * 4  # two visits each, then the better half
    assert table[4, 8:].tolist() == [2, 2, 3, 3, 4, 4, 5, 5]
    assert table.shape == (5, 16)


def test_temperature_is_each_environments_own():
    rng, policy = np.random.default_rng(0), np.tile([0.6, 0.4, 0.0], (3, 1))
    temperature = np.array([0.0, 1.0, 0.05])
    drawn = np.array([sample_actions(policy, temperature, rng) for _ in range(2000)])
    assert (drawn != 2).all() and (drawn[:, 0] == 0).all()
    # Standard error of a share of 0.4 over 2,000 draws is 0.011; 0.05 sharpens it to 3e-4.
    assert abs(drawn[:, 1].mean() - 0.4) < 0.05 and drawn[:, 2].mean() < 0.01

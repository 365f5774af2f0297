"""The part of a search tree that the live page draws, and searches with fewer simulations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.search import Planner, SearchConfig
from actors.search.tree_picture import NO_PARENT, draw_tree

N_ENVS = 2


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


def make_planner(model, **config):
    return Planner(model, SearchConfig(**config), n_envs=N_ENVS, discount=0.99, seed=0)


def search(planner, draw_obs, action=-1, seed=0, **arguments):
    obs = draw_obs(np.random.default_rng(seed), planner._model.spec, N_ENVS)
    return planner.search(np.arange(N_ENVS), obs, np.full(N_ENVS, action), **arguments)


@settings(max_examples=15)
@given(
    n_simulations=st.integers(1, 30),
    max_nodes=st.integers(1, 40),
    seed=st.integers(0, 1000),
    variant=st.sampled_from(("puct", "gumbel")),
)
def test_the_most_visited_nodes_are_shown_below_their_parents(
    model, draw_obs, n_simulations, max_nodes, seed, variant
):
    planner = make_planner(model, n_simulations=n_simulations, variant=variant)
    output = search(planner, draw_obs, seed=seed)
    picture = draw_tree(planner._tree, 1, max_nodes)
    n_shown = len(picture.visits)
    assert n_shown == min(max_nodes, picture.n_nodes) and picture.n_nodes <= n_simulations + 1
    assert picture.parent[0] == NO_PARENT and picture.visits[0] == n_simulations + 1
    assert picture.value[0] == pytest.approx(output.root_value[1], abs=1e-5)
    assert (picture.parent[1:] >= 0).all()
    assert (picture.parent[1:] < np.arange(1, n_shown)).all()
    below = np.zeros(n_shown, np.int64)
    np.add.at(below, picture.parent[1:], picture.visits[1:])
    assert (below < picture.visits).all(), "each node was evaluated itself once"
    all_visits = np.sort(planner._tree.nodes["visits"][1, : picture.n_nodes])[::-1]
    np.testing.assert_array_equal(np.sort(picture.visits)[::-1], all_visits[:n_shown])
    for node in np.flatnonzero(picture.parent == 0):
        assert picture.visits[node] == output.visit_counts[1, picture.action[node]]
        assert picture.prior[node] == pytest.approx(output.root_prior[1, picture.action[node]])


@pytest.mark.parametrize("variant", ["puct", "gumbel"])
@pytest.mark.parametrize("fewer", [1, 7, 19])
def test_fewer_simulations_search_as_if_the_settings_said_so(model, draw_obs, variant, fewer):
    large = make_planner(model, n_simulations=20, variant=variant)
    small = make_planner(model, n_simulations=fewer, variant=variant)
    for action in (-1, 0, 2):
        some = search(large, draw_obs, action, n_simulations=fewer)
        own = search(small, draw_obs, action)
        np.testing.assert_array_equal(some.visit_counts, own.visit_counts)
        np.testing.assert_array_equal(some.policy, own.policy)
        assert some.stats.simulations == fewer * N_ENVS


def test_a_kept_tree_larger_than_a_search_is_not_kept(model, draw_obs):
    """Else the visits of the search before would be more than all of this one."""
    planner = make_planner(model, n_simulations=30, reuse_tree=True)
    action = -1
    for n_simulations in (30, 5, 30, 2):
        output = search(planner, draw_obs, action, n_simulations=n_simulations)
        assert (output.visit_counts.sum(axis=1) == n_simulations).all()
        np.testing.assert_allclose(output.policy.sum(axis=1), 1.0, rtol=1e-6)
        action = int(output.visit_counts[0].argmax())


@pytest.mark.parametrize("wrong", [0, 3, 21, -1])
def test_more_than_the_trees_hold_is_refused(model, draw_obs, wrong):
    planner = make_planner(model, n_simulations=20, leaves_per_call=4)
    with pytest.raises(ValueError, match=rf"n_simulations must lie in \[4, 20\].*got {wrong}"):
        search(planner, draw_obs, n_simulations=wrong)

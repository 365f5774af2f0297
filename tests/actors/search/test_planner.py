"""The planner's promises to its caller: shapes, legality, determinism, failures, errors."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from actors.search import InjectionConfig, Planner, RootPrior, SearchConfig
from cache.pages import ACTION_SLOT, OBSERVATION_SLOT

N_ENVS = 3


@pytest.fixture
def make_planner(through):
    def make(model, seed=0, n_envs=N_ENVS, injection=None, **config):
        settings = SearchConfig(**{"n_simulations": 20, "debug": True, **config})
        return through(
            Planner(model, settings, n_envs=n_envs, discount=0.99, seed=seed, injection=injection)
        )

    return make


def first_call(planner, obs, **arguments):
    n = len(obs)
    return planner.search(np.arange(n), obs, np.full(n, -1), **arguments)


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def obs(model, draw_obs):
    return draw_obs(np.random.default_rng(0), model.spec, N_ENVS)


def test_outputs_are_consistent(make_planner, model, obs):
    output = first_call(make_planner(model), obs)
    assert output.visit_counts.dtype == np.int32 and output.policy.dtype == np.float32
    assert output.visit_counts.shape == output.q_value.shape == (N_ENVS, 3)
    assert (output.visit_counts.sum(axis=1) == 20).all()
    np.testing.assert_allclose(output.policy, output.visit_counts / 20)
    np.testing.assert_allclose(output.model_policy.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(output.root_prior, output.model_policy)
    assert ((output.q_value == 0) == (output.visit_counts == 0)).all()
    mean = (output.visit_counts * output.q_value).sum(axis=1) / 20
    assert np.isfinite(output.root_value).all() and np.abs(output.root_value - mean).max() < 0.5
    assert (output.depth_max >= 2).all() and output.depth_max.dtype == np.int32
    stats = output.stats
    assert stats.simulations == 60 and stats.n_failed == 0
    assert 0 < stats.seconds_tree + stats.seconds_model < stats.seconds_total


def play(planner, model, draw_obs, n_calls=8):
    rng, actions, outputs = np.random.default_rng(5), np.full(N_ENVS, -1), []
    for _ in range(n_calls):
        envs = rng.permutation(N_ENVS)[: rng.integers(1, N_ENVS, endpoint=True)]
        obs = draw_obs(rng, model.spec, len(envs))
        outputs.append(planner.search(envs, obs, actions[envs], add_noise=True))
        actions[envs] = outputs[-1].visit_counts.argmax(axis=1)
    return outputs


def test_one_seed_gives_one_result(make_planner, model, draw_obs):
    first, second, other = (play(make_planner(model, seed), model, draw_obs) for seed in (7, 7, 8))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.visit_counts, b.visit_counts)
        np.testing.assert_array_equal(a.q_value, b.q_value)
    assert any((a.visit_counts != b.visit_counts).any() for a, b in zip(first, other, strict=True))


def test_rows_do_not_depend_on_their_companions(make_planner, model, draw_obs):
    """float64, no noise: a row alone gives the same visits as in a batch."""
    model = model.double()
    obs = draw_obs(np.random.default_rng(1), model.spec, N_ENVS)
    together = first_call(make_planner(model), obs)
    planner = make_planner(model)
    for row in reversed(range(N_ENVS)):
        alone = planner.search(np.array([row]), obs[[row]], np.array([-1]))
        np.testing.assert_array_equal(alone.visit_counts[0], together.visit_counts[row])


def follow(planner, model, draw_obs, n_calls=4, change_weights_at=None):
    """Visits and simulations of consecutive searches that play the most visited action."""
    rng, actions, outputs = np.random.default_rng(5), np.full(N_ENVS, -1), []
    for call in range(n_calls):
        if call == change_weights_at:
            planner.weights_changed(1)
        obs = draw_obs(rng, model.spec, N_ENVS)
        outputs.append(planner.search(np.arange(N_ENVS), obs, actions))
        actions = outputs[-1].visit_counts.argmax(axis=1)
    return outputs


def test_a_reused_tree_saves_simulations_and_ends_with_as_many_visits(
    make_planner, model, draw_obs
):
    plain = follow(make_planner(model), model, draw_obs)
    outputs = follow(make_planner(model, reuse_tree=True), model, draw_obs)
    np.testing.assert_array_equal(outputs[0].visit_counts, plain[0].visit_counts)
    for before, output in pairwise(outputs):
        best = before.visit_counts.max(axis=1)
        assert (output.visit_counts.sum(axis=1) == 20).all() and output.stats.n_failed == 0
        # The child's own first visit is not one of its subtree's.
        assert output.stats.simulations == (20 - (best - 1)).sum()


def test_new_weights_and_new_episodes_start_new_trees(make_planner, model, obs, draw_obs):
    planner = make_planner(model, reuse_tree=True)
    outputs = follow(planner, model, draw_obs, change_weights_at=2)
    assert [o.stats.simulations == 60 for o in outputs] == [True, False, True, False]
    assert first_call(planner, obs).stats.simulations == 60


@pytest.mark.parametrize("n_leaves", [2, 5, 20])
def test_leaf_batching_makes_fewer_calls_of_the_model(
    make_planner, model, obs, monkeypatch, n_leaves
):
    calls, real = [], model.observation_token
    monkeypatch.setattr(model, "observation_token", lambda *a: calls.append(1) or real(*a))
    output = first_call(make_planner(model, leaves_per_call=n_leaves), obs)
    assert len(calls) == 1 + 20 // n_leaves  # the root's own, then the leaves'
    assert (output.visit_counts.sum(axis=1) == 20).all() and output.stats.n_failed == 0


@pytest.mark.parametrize("alpha", [0.03, 0.3, 10.0])
def test_illegal_actions_are_never_visited(make_planner, model, obs, alpha):
    legal = np.array([[True, False, True], [False, False, True], [True, True, True]])
    llm = RootPrior(np.full((N_ENVS, 3), 1 / 3, np.float32), np.ones(N_ENVS, np.bool_))
    planner = make_planner(model, dirichlet_alpha=alpha, dirichlet_fraction=0.9)
    output = first_call(planner, obs, legal=legal, mix=llm, add_noise=True)
    for array in (output.visit_counts, output.policy, output.model_policy, output.root_prior):
        assert (array[~legal] == 0).all()
    assert output.visit_counts[1, 2] == 20


def test_gumbel_plays_legal_actions_and_is_deterministic_under_a_seed(make_planner, model, obs):
    legal = np.array([[True, False, True], [False, False, True], [True, True, True]])
    outputs = [
        first_call(make_planner(model, seed, variant="gumbel"), obs, legal=legal, add_noise=noise)
        for seed, noise in ((1, True), (1, True), (1, False), (2, False))
    ]
    for output in outputs:
        assert legal[np.arange(N_ENVS), output.action].all()
        assert not output.policy[~legal].any() and not output.visit_counts[~legal].any()
        np.testing.assert_allclose(output.policy.sum(axis=1), 1, rtol=1e-5)
        assert (output.visit_counts.sum(axis=1) == 20).all()
    for same, other in ((0, 1), (2, 3)):  # without noise a seed decides nothing
        np.testing.assert_array_equal(outputs[same].action, outputs[other].action)
        np.testing.assert_array_equal(outputs[same].policy, outputs[other].policy)


def test_the_prior_steers_the_search(make_planner, model, obs):
    llm = RootPrior(np.eye(3, dtype=np.float32), np.array([True, True, False]))
    planner = make_planner(model, injection=InjectionConfig(mode="llm"))
    output = first_call(planner, obs, mix=llm)
    np.testing.assert_allclose(output.root_prior[:2], np.eye(3)[:2])
    np.testing.assert_array_equal(output.root_prior[2], output.model_policy[2])
    # An action without prior is only ever tried on an exact tie.
    assert output.visit_counts[0, 0] >= 19 and output.visit_counts[1, 1] >= 19


def test_search_improves_on_a_wrong_prior(make_planner, model, obs, monkeypatch):
    """Only action 2, played first, pays; with enough simulations it is found."""
    real_action, real_observation = model.action_token, model.observation_token

    def logits_of(values):
        return model.support.two_hot(values).clamp(min=1e-30).log()

    def action_token(action, context):
        _, latent = real_action(action, context)
        is_first = torch.isneginf(context.masks[0][:, 0]).sum(1) == 3  # only the root is read
        return logits_of(((action == 2) & is_first).to(latent.dtype)), latent

    def observation_token(*arguments):
        logits, value = real_observation(*arguments)
        return logits, logits_of(torch.zeros(len(value), dtype=value.dtype))

    monkeypatch.setattr(model, "action_token", action_token)
    monkeypatch.setattr(model, "observation_token", observation_token)
    llm = np.tile(np.array([0.45, 0.45, 0.1], np.float32), (N_ENVS, 1))
    planner = make_planner(model, injection=InjectionConfig(mode="llm"), n_simulations=100)
    output = first_call(planner, obs, mix=RootPrior(llm, np.ones(N_ENVS, np.bool_)))
    assert (output.visit_counts.argmax(axis=1) == 2).all()


@pytest.mark.parametrize("when", ["root", "action", "observation"])
def test_nan_fails_its_row_only(make_planner, model, obs, monkeypatch, when):
    clean = first_call(make_planner(model), obs)
    real_action, real_observation, calls = model.action_token, model.observation_token, []

    def action_token(*arguments):
        reward, latent = real_action(*arguments)
        if when == "action" and len(calls) == 5:
            latent = latent.clone()
            latent[1] = torch.nan
        return reward, latent

    def observation_token(latent, context):
        logits, value = real_observation(latent, context)
        if len(calls) == {"root": 0, "action": -1, "observation": 5}[when]:
            value = value.clone()
            value[1] = torch.inf
            context.own()[1] = torch.nan
        calls.append(1)
        return logits, value

    monkeypatch.setattr(model, "action_token", action_token)
    monkeypatch.setattr(model, "observation_token", observation_token)
    planner = make_planner(model)
    output = first_call(planner, obs)
    assert output.stats.n_failed == 1
    np.testing.assert_array_equal(output.policy[1], output.root_prior[1])
    assert output.visit_counts[1].sum() == 20
    for name in ("visit_counts", "policy", "q_value", "root_value"):
        assert np.isfinite(getattr(output, name)).all()
        np.testing.assert_array_equal(getattr(output, name)[[0, 2]], getattr(clean, name)[[0, 2]])
    calls[:] = [1] * 1000  # healthy from here on
    again = planner.search(np.arange(N_ENVS), obs, np.zeros(N_ENVS, np.int64))
    assert again.stats.n_failed == 0 and again.stats.n_rebuilt == 1


def test_a_slot_without_a_token_holds_zeros(make_planner, model, draw_obs):
    """A masked NaN would still reach a weighted sum, so nothing but zeros may stand there."""
    planner, rng = make_planner(model), np.random.default_rng(0)
    for envs, actions in (([0], [-1]), ([0, 1], [2, -1])):
        planner._cache.clear("recurrent")  # else the action token is read from the tree
        planner.search(np.array(envs), draw_obs(rng, model.spec, len(envs)), np.array(actions))
    cache = planner._cache
    page = cache.lookup(np.array([0, 1]), np.array([0, 0]), np.array([-1, -1]))
    assert cache.pages.mask[page].tolist() == 2 * [[-np.inf, 0.0]]
    kv = cache.pages.kv[page]
    assert not kv[..., ACTION_SLOT, :].any() and kv[..., OBSERVATION_SLOT, :].any()


def test_errors_name_the_row(make_planner, model, obs):
    planner = make_planner(model)
    legal = np.ones((N_ENVS, 3), np.bool_)
    legal[1] = False
    with pytest.raises(ValueError, match=r"row 1 \(environment 1\) has no legal action"):
        first_call(planner, obs, legal=legal)
    with pytest.raises(ValueError, match=r"environment 0 \(row 0\) continues an episode"):
        planner.search(np.arange(N_ENVS), obs, np.zeros(N_ENVS, np.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(env_ids=np.array([0, 1, 1])), "distinct"),
        (dict(env_ids=np.array([0, 1, 9])), r"in \[0, 3\)"),
        (dict(last_action=np.array([-1, -1, 3])), r"last_action must lie in \[-1, 3\)"),
        (dict(obs=np.zeros((3, 4), np.float32)), "have shapes"),
        (dict(obs=np.zeros((3, 3), np.float64)), "obs must be float32, got float64"),
        (dict(legal=np.ones((3, 4), np.bool_)), "have shapes"),
    ],
)
def test_bad_arguments_are_refused(make_planner, model, obs, change, message):
    call = dict(env_ids=np.arange(3), obs=obs, last_action=np.full(3, -1))
    with pytest.raises(ValueError, match=message):
        make_planner(model).search(**{**call, **change})


@pytest.mark.parametrize(
    ("config", "needed"),
    [(dict(recurrent_pages=59), "3 \\* 20 = 60"), (dict(init_pages=8), "3 \\* 3 = 9")],
)
def test_pools_too_small_are_refused_at_construction(make_planner, model, config, needed):
    name, size = next(iter(config.items()))
    with pytest.raises(ValueError, match=f"{name}={size} is too small.*n_simulations=20.*{needed}"):
        make_planner(model, **config)


def test_fewer_roots_at_once_need_fewer_pages(make_planner, model, draw_obs):
    planner = make_planner(model, recurrent_pages=20, max_roots=1)
    rng = np.random.default_rng(0)
    for env in (0, 1, 0):
        planner.search(np.array([env]), draw_obs(rng, model.spec, 1), np.array([-1]))
    assert planner.cache_stats()["recurrent"].evictions == 2
    with pytest.raises(ValueError, match="at most 1"):
        planner.search(np.arange(2), draw_obs(rng, model.spec, 2), np.full(2, -1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_simulations", 0),
        ("leaves_per_call", 26),
        ("max_considered_actions", 0),
        ("gumbel_scale", -1.0),
        ("variant", "greedy"),
        ("dirichlet_fraction", 1.5),
        ("dirichlet_alpha", 0.0),
        ("init_eviction", "random"),
        ("recurrent_eviction", "none"),
        ("init_pages", -1),
    ],
)
def test_config_errors_name_field_and_value(field, value):
    with pytest.raises(ValueError, match=rf"{field} must .*{value}"):
        SearchConfig(**{field: value})


def test_gumbel_refuses_to_reuse_trees():
    with pytest.raises(ValueError, match="reuse_tree must be false with variant 'gumbel'"):
        SearchConfig(variant="gumbel", reuse_tree=True)


@pytest.mark.parametrize("variant", ["puct", "gumbel"])
def test_noise_may_be_asked_for_in_another_measure(make_planner, model, obs, variant):
    """Twice the configured noise is what twice the setting would be; none is none."""
    wide = {"dirichlet_fraction": 0.5, "gumbel_scale": 2.0, "variant": variant}
    plain = {"dirichlet_fraction": 0.25, "gumbel_scale": 1.0, "variant": variant}
    for noise, settings in ((2.0, wide), (True, plain), (1.0, plain)):
        one = first_call(make_planner(model, **plain), obs, add_noise=noise)
        other = first_call(make_planner(model, **settings), obs, add_noise=True)
        np.testing.assert_array_equal(one.policy, other.policy)
        np.testing.assert_array_equal(one.action, other.action)
    most = first_call(make_planner(model, **plain), obs, add_noise=100.0)
    assert np.isfinite(most.policy).all()
    none = first_call(make_planner(model, **plain), obs, add_noise=0.0)
    without = first_call(make_planner(model, **plain), obs)
    np.testing.assert_array_equal(none.policy, without.policy)

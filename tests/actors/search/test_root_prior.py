"""Mixing a language model's prior with the world model's policy, and noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.search.root_prior import (
    InjectionConfig,
    add_dirichlet_noise,
    mix_root_prior,
    normalised_entropy,
    softmax_legal,
)

MODEL = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
LLM = np.array([[0.0, 0.2, 0.8], [1.0, 0.0, 0.0]], np.float32)
ALL = np.ones((2, 3), np.bool_)
BOTH = np.ones(2, np.bool_)


def test_modes_by_hand():
    def mixed(**config):
        return mix_root_prior(MODEL, LLM, BOTH, None, InjectionConfig(**config), env_steps=0)

    np.testing.assert_allclose(mixed(mode="world_model"), MODEL)
    np.testing.assert_allclose(mixed(mode="llm"), LLM, atol=1e-7)
    np.testing.assert_allclose(mixed(weight=0.25), 0.75 * MODEL + 0.25 * LLM, atol=1e-7)


def test_the_share_decays_to_the_world_model():
    config = InjectionConfig(weight=0.8, decay_env_steps=1000)
    for env_steps, weight in ((0, 0.8), (500, 0.4), (1000, 0.0), (9999, 0.0)):
        mixed = mix_root_prior(MODEL, LLM, BOTH, ALL, config, env_steps)
        np.testing.assert_allclose(mixed, (1 - weight) * MODEL + weight * LLM, atol=1e-7)


def test_adaptive_asks_the_llm_more_where_the_world_model_is_unsure():
    model = np.array([[1 / 3, 1 / 3, 1 / 3], [0.98, 0.01, 0.01]])
    llm = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    config = InjectionConfig(weight=0.6, adaptive=True)
    mixed = mix_root_prior(model, llm, BOTH, ALL, config, 0)
    entropy = normalised_entropy(model, ALL)
    assert entropy[0] == pytest.approx(1.0) and entropy[1] < 0.15
    weight = 0.6 * entropy[:, None]
    np.testing.assert_allclose(mixed, (1 - weight) * model + weight * llm)


def test_rows_without_usable_advice_keep_the_world_model():
    llm = np.array([[0.1, 0.2, 0.7], [np.nan, 0, 1], [0, 0, 1], [-1, 1, 1], [0, 0, 0]])
    legal = np.ones((5, 3), np.bool_)
    legal[2] = [True, True, False]  # the advice is all on an illegal action
    model = np.full((5, 3), 1 / 3)
    available = np.array([False, True, True, True, True])
    mixed = mix_root_prior(model, llm, available, legal, InjectionConfig(mode="llm"), 0)
    np.testing.assert_allclose(mixed, legal / legal.sum(axis=1, keepdims=True))


@settings(max_examples=50)
@given(st.integers(0, 2**31), st.sampled_from(["llm", "world_model", "mixture"]), st.booleans())
def test_priors_and_noise_are_distributions_over_legal_actions(seed, mode, adaptive):
    rng = np.random.default_rng(seed)
    n_roots, n_actions = rng.integers(1, 6), rng.integers(1, 8)
    legal = rng.random((n_roots, n_actions)) < 0.5
    legal[:, rng.integers(n_actions)] = True
    model = softmax_legal(rng.normal(size=(n_roots, n_actions)) * 5, legal)
    llm = rng.dirichlet(np.ones(n_actions), size=n_roots)
    config = InjectionConfig(mode=mode, adaptive=adaptive)
    prior = mix_root_prior(model, llm, rng.random(n_roots) < 0.5, legal, config, 0)
    for alpha in (0.3, 1e-3):
        noisy = add_dirichlet_noise(prior, legal, alpha, 0.25, rng)
        for rows in (model, prior, noisy):
            assert (rows[~legal] == 0).all() and (rows >= 0).all()
            np.testing.assert_allclose(rows.sum(axis=1), 1.0)
        assert (noisy >= 0.75 * prior - 1e-12).all()
    shares = rng.random(n_roots)
    noisy = add_dirichlet_noise(prior, legal, 0.3, shares, rng)
    np.testing.assert_allclose(noisy.sum(axis=1), 1.0)
    assert (noisy >= (1.0 - shares[:, None]) * prior - 1e-12).all()
    none = add_dirichlet_noise(prior, legal, 0.3, np.zeros(n_roots), rng)
    np.testing.assert_array_equal(none, prior)


def test_softmax_is_uniform_where_logits_are_not_finite():
    logits = np.array([[np.nan, 0.0, 1.0], [0.0, np.log(3.0), 9.0]])
    legal = np.array([[True, True, False], [True, True, False]])
    np.testing.assert_allclose(softmax_legal(logits, legal), [[0.5, 0.5, 0], [0.25, 0.75, 0]])


@pytest.mark.parametrize(
    ("field", "value"), [("mode", "both"), ("weight", 1.5), ("decay_env_steps", -1)]
)
def test_config_errors_name_field_and_value(field, value):
    with pytest.raises(ValueError, match=rf"{field} must .*{value}"):
        InjectionConfig(**{field: value})

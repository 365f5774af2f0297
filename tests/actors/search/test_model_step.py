"""The model call of a simulation: padded rows, low precision, and where they may write."""

import numpy as np
import pytest
import torch

from actors.search import Planner, SearchConfig, model_step
from cache.pages import NULL_PAGE

N_ENVS = 3


def play(model, draw_obs, n_calls=5):
    """Outputs of a few searches over changing subsets of the environments."""
    planner = Planner(
        model, SearchConfig(n_simulations=12, debug=True), n_envs=N_ENVS, discount=0.97, seed=3
    )
    rng, outputs = np.random.default_rng(0), []
    for call in range(n_calls):
        envs = np.arange(N_ENVS) if call % 2 == 0 else np.array([2, 0])
        obs = draw_obs(rng, model.spec, len(envs))
        actions = np.full(len(envs), call % 3 if call else -1)
        outputs.append(planner.search(envs, obs, actions))
    return planner, outputs


def test_padding_changes_nothing(make_model, draw_obs, monkeypatch):
    """As on CUDA: batches of 2 and 3 run on buffers of 4 rows, whose spare rows go nowhere."""
    model = make_model(dtype=torch.float64)
    _, exact = play(model, draw_obs)
    monkeypatch.setattr(model_step, "padded_rows", lambda n_rows, device: 4)
    planner, padded = play(model, draw_obs)
    for a, b in zip(exact, padded, strict=True):
        np.testing.assert_array_equal(a.visit_counts, b.visit_counts)
        np.testing.assert_allclose(a.q_value, b.q_value, atol=1e-6)
    pages = planner._cache.pages
    assert not pages.kv[NULL_PAGE].any() and torch.isneginf(pages.mask[NULL_PAGE]).all()


@pytest.mark.parametrize(
    ("n_rows", "on_cuda"), [(1, 1), (3, 4), (8, 8), (33, 64), (65, 128), (256, 256), (257, 320)]
)
def test_cuda_uses_a_few_row_counts_and_the_cpu_exact_ones(n_rows, on_cuda):
    assert model_step.padded_rows(n_rows, torch.device("cuda")) == on_cuda
    assert model_step.padded_rows(n_rows, torch.device("cpu")) == n_rows


def test_low_precision_parameters_keep_statistics_and_scalars_exact(make_model, draw_obs):
    """bf16 pages and latents; rewards and values come out in float32, close to the full ones."""
    _, full = play(make_model(), draw_obs)
    model = make_model()
    model.store_parameters_in(torch.bfloat16)
    assert model.support.offsets.dtype == model.encoder.mean.dtype == torch.float32
    planner, low = play(model, draw_obs)
    assert planner._cache.pages.kv.dtype == torch.bfloat16
    for a, b in zip(full, low, strict=True):
        assert b.stats.n_failed == 0 and (b.visit_counts.sum(axis=1) == 12).all()
        np.testing.assert_allclose(a.model_policy, b.model_policy, atol=0.05)
        np.testing.assert_allclose(a.root_value, b.root_value, atol=0.2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_graphs_on_cuda_equal_the_cpu(make_model, draw_obs):
    model = make_model()
    _, on_cpu = play(model, draw_obs)
    planner = Planner(
        make_model().cuda(),
        SearchConfig(n_simulations=12),
        n_envs=N_ENVS,
        discount=0.97,
        seed=3,
        device="cuda",
    )
    obs = draw_obs(np.random.default_rng(0), model.spec, N_ENVS)
    output = planner.search(np.arange(N_ENVS), obs, np.full(N_ENVS, -1))
    np.testing.assert_allclose(output.root_value, on_cpu[0].root_value, atol=1e-3)

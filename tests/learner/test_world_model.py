"""The world model: masks, heads at initialisation, and cached tokens against the full window."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cache.pages import ACTION_SLOT, N_RESERVED_PAGES, NULL_PAGE, Pages, PageShape
from learner.world_model import WorldModel, WorldModelConfig
from learner.world_model.encoder import SimNorm
from learner.world_model.transformer import banded_mask, first_visible_token
from replay_service.segment import GameSpec

VECTOR = GameSpec(obs_shape=(4,), obs_dtype="float32", n_actions=3)


def small_model(window: int = 3, n_layers: int = 2, seed: int = 0) -> WorldModel:
    torch.manual_seed(seed)
    config = WorldModelConfig(
        embed_dim=16, n_layers=n_layers, n_heads=2, window_steps=window, mlp_hidden=16
    )
    return randomised(WorldModel(config, VECTOR))


def randomised(model: WorldModel) -> WorldModel:
    """Zero-initialised heads hide errors; give every parameter some noise."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def test_mask_of_a_window_of_two_steps_by_hand():
    # tokens      o0 a0 o1 a1 o2
    # their steps  0  1  1  2  2
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 1, 1, 1, 1],
    ]
    assert banded_mask(5, 2, torch.device("cpu")).int().tolist() == expected


@pytest.mark.parametrize("window", [1, 2, 4])
def test_first_visible_token_is_where_the_mask_row_begins(window):
    mask = banded_mask(15, window, torch.device("cpu"))
    for token in range(15):
        assert first_visible_token(token, window) == mask[token].int().argmax().item()


def test_fresh_heads_say_zero_value_zero_reward_and_uniform_policy():
    model = WorldModel(WorldModelConfig(), VECTOR)
    out = model(model.encode(torch.randn(6, 4)).view(2, 3, -1), torch.zeros(2, 3, dtype=torch.long))
    zeros = torch.zeros(2, 3)  # up to the rounding of a sum over 101 equal shares
    torch.testing.assert_close(model.support.decode(out.value_logits), zeros, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.support.decode(out.reward_logits), zeros, rtol=0, atol=1e-5)
    assert torch.equal(out.policy_logits, torch.zeros(2, 3, 3))


def test_simnorm_groups_are_softmaxes():
    latent = SimNorm()(torch.randn(5, 24))
    torch.testing.assert_close(latent.view(5, 8, 3).sum(-2), torch.ones(5, 3))


@pytest.mark.parametrize("side", [64, 84, 96])
@pytest.mark.parametrize("channels", [1, 3])
def test_image_encoder_takes_every_supported_size(side, channels):
    spec = GameSpec((channels, side, side), "uint8", n_actions=2, frame_stack=2)
    model = WorldModel(WorldModelConfig(encoder_channels=8), spec)
    obs = torch.randint(0, 256, (3, 2 * channels, side, side), dtype=torch.uint8)
    assert model.encode(obs).shape == (3, 64)


def cached_rollout(model: WorldModel, latents: Tensor, actions: Tensor, offset: int):
    """The window's outputs by single tokens over pages, steps counted from `offset`."""
    n_rows, n_steps = latents.shape[:2]
    config = model.config
    n_context = config.window_steps - 1
    shape = PageShape(config.n_layers, config.n_heads, config.head_dim)
    first_page = N_RESERVED_PAGES + torch.arange(n_rows) * (n_steps + 1)
    pages = Pages(N_RESERVED_PAGES + n_rows * (n_steps + 1), shape, dtype=latents.dtype, debug=True)
    observed, acted = [], []
    context = model.token_context(pages, n_rows, n_context)
    for t in range(n_steps + 1):
        held = t + torch.arange(-n_context, 1)
        pages.mark(first_page + t, True)
        context.read(
            torch.where(held >= 0, first_page[:, None] + held, NULL_PAGE),
            torch.full((n_rows,), t + offset),
        )
        if t > 0:
            acted.append(model.action_token(actions[:, t - 1], context))
        else:
            nothing = context.own()[..., ACTION_SLOT, :]
            context.replace_action(nothing, torch.zeros(n_rows, dtype=torch.bool))
        if t < n_steps:
            observed.append(model.observation_token(latents[:, t], context))
            context.write()
            pages.mark(first_page + t, t > 0)
    policy, value = (torch.stack(column, 1) for column in zip(*observed, strict=True))
    reward, next_latent = (torch.stack(column, 1) for column in zip(*acted, strict=True))
    decode = model.support.decode
    return policy, decode(value), decode(reward), next_latent


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@settings(max_examples=25)
@given(
    window=st.integers(1, 5),
    n_layers=st.integers(1, 3),
    n_steps=st.integers(1, 9),
    offset=st.sampled_from([0, 7, 5_000]),
    seed=st.integers(0, 1000),
)
def test_cached_tokens_equal_the_banded_window(
    dtype, bound, window, n_layers, n_steps, offset, seed
):
    model = small_model(window, n_layers, seed).to(dtype)
    latents = model.encode(torch.randn(2 * n_steps, 4)).view(2, n_steps, -1)
    actions = torch.randint(0, 3, (2, n_steps))
    with torch.no_grad():
        out = model(latents, actions)
        policy, value, reward, next_latent = cached_rollout(model, latents, actions, offset)
        expected_value = model.support.decode(out.value_logits)
        expected_reward = model.support.decode(out.reward_logits)
    for got, expected in (
        (policy, out.policy_logits),
        (value, expected_value),
        (reward, expected_reward),
        (next_latent, out.next_latent),
    ):
        scale = max(1.0, expected.abs().max().item())
        assert (got - expected).abs().max().item() <= bound * scale


@settings(max_examples=25)
@given(
    window=st.integers(1, 4),
    n_steps=st.integers(1, 7),
    n_real=st.integers(1, 7),
    seed=st.integers(0, 1000),
)
def test_imagined_window_equals_forward_over_its_own_predictions(window, n_steps, n_real, seed):
    model = small_model(window, seed=seed).double()
    n_real = min(n_real, n_steps)
    real = model.encode(torch.randn(2 * n_real, 4)).view(2, n_real, -1)
    actions = torch.randint(0, 3, (2, n_steps))
    with torch.no_grad():
        imagined = model.imagine(real, actions)
        latents = torch.cat((real, imagined.next_latent[:, n_real - 1 : n_steps - 1]), 1)
        expected = model(latents, actions)
        values = model.values(latents, actions)
    torch.testing.assert_close(imagined.policy_logits, expected.policy_logits)
    torch.testing.assert_close(imagined.value_logits, expected.value_logits)
    torch.testing.assert_close(imagined.reward_logits, expected.reward_logits)
    torch.testing.assert_close(imagined.next_latent, expected.next_latent)
    torch.testing.assert_close(values, model.support.decode(expected.value_logits))


def test_receptive_field_is_what_the_config_says():
    model = small_model(window=3, n_layers=2)
    n_steps = 8
    latents = model.encode(torch.randn(n_steps, 4)).detach().view(1, n_steps, -1)
    latents.requires_grad_(True)
    model(latents, torch.zeros(1, n_steps, dtype=torch.long)).policy_logits[0, -1].sum().backward()
    reaches = latents.grad[0].abs().sum(-1) > 0
    assert reaches.sum().item() == model.config.receptive_steps == 5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("embed_dim", 60),
        ("n_heads", 3),
        ("n_layers", 0),
        ("support_size", 100),
        ("support_max", 0.0),
        ("window_steps", 0),
    ],
)
def test_bad_sizes_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"world_model\.{field} must .*{value}"):
        WorldModelConfig(**{field: value})

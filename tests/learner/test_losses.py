"""Losses against hand-computed values: masks, legal actions, latents."""

from __future__ import annotations

import math

import torch

from learner.losses import LossTargets, latent_divergence, masked_mean, sample_losses
from learner.world_model import ModelOutput
from learner.world_model.support import Support, inverse_transform


def window(n_samples: int = 1, n_steps: int = 2, n_actions: int = 2, n_bins: int = 3):
    """Output of all-zero logits and targets of zero, both with every step valid."""
    uniform_latent = torch.full((n_samples, n_steps, 8), 1 / 8)
    output = ModelOutput(
        policy_logits=torch.zeros(n_samples, n_steps, n_actions),
        value_logits=torch.zeros(n_samples, n_steps, n_bins),
        reward_logits=torch.zeros(n_samples, n_steps, n_bins),
        next_latent=uniform_latent,
    )
    targets = LossTargets(
        value=torch.zeros(n_samples, n_steps),
        reward=torch.zeros(n_samples, n_steps),
        policy=torch.full((n_samples, n_steps, n_actions), 1 / n_actions),
        latent=uniform_latent.clone(),
        valid=torch.ones(n_samples, n_steps, dtype=torch.bool),
    )
    return output, targets, Support(n_bins, 1.0)


def test_uniform_outputs_cost_the_logarithm_of_their_size():
    output, targets, support = window()
    losses = sample_losses(output, targets, support)
    torch.testing.assert_close(losses.policy, torch.tensor([math.log(2)]))
    torch.testing.assert_close(losses.entropy, torch.tensor([math.log(2)]))
    torch.testing.assert_close(losses.value, torch.tensor([math.log(3)]))
    torch.testing.assert_close(losses.reward, torch.tensor([math.log(3)]))
    torch.testing.assert_close(losses.latent, torch.zeros(1))


def test_value_cross_entropy_by_hand():
    output, targets, support = window()  # bins at -1, 0, 1 in transformed space
    targets.value[0] = inverse_transform(torch.tensor([0.25, 1.0]))
    output.value_logits[0, 0] = torch.tensor([0.2, 0.3, 0.5]).log()
    output.value_logits[0, 1] = torch.tensor([0.1, 0.1, 0.8]).log()
    expected = -(0.75 * math.log(0.3) + 0.25 * math.log(0.5) + math.log(0.8)) / 2
    torch.testing.assert_close(sample_losses(output, targets, support).value[0].item(), expected)


def test_steps_that_are_not_valid_change_nothing():
    output, targets, support = window(n_samples=2, n_steps=3)
    targets.valid[0, 1:] = False
    expected = sample_losses(output, targets, support)
    for tensor in (output.policy_logits, output.value_logits, output.reward_logits):
        tensor[0, 1:] = torch.randn_like(tensor[0, 1:])
    targets.value[0, 1:] = 0.7
    targets.latent[0, 1:] = torch.softmax(torch.randn(8), -1)
    got = sample_losses(output, targets, support)
    for name in ("policy", "value", "reward", "latent", "entropy"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name))


def test_rows_without_a_policy_target_leave_policy_and_entropy_alone():
    output, targets, support = window()
    targets.policy[0, 1] = 0.0
    output.policy_logits[0, 1] = torch.tensor([5.0, -5.0])
    losses = sample_losses(output, targets, support)
    torch.testing.assert_close(losses.policy, torch.tensor([math.log(2)]))
    torch.testing.assert_close(losses.entropy, torch.tensor([math.log(2)]))


def test_illegal_actions_have_no_share_and_no_gradient():
    output, targets, support = window(n_steps=1, n_actions=3)
    logits = output.policy_logits.requires_grad_(True)
    targets.policy[0, 0] = torch.tensor([0.5, 0.5, 0.0])
    legal = LossTargets(
        value=targets.value,
        reward=targets.reward,
        policy=targets.policy,
        latent=targets.latent,
        valid=targets.valid,
        legal=torch.tensor([[[True, True, False]]]),
    )
    losses = sample_losses(output, legal, support)
    torch.testing.assert_close(losses.policy.detach(), torch.tensor([math.log(2)]))
    torch.testing.assert_close(losses.entropy.detach(), torch.tensor([math.log(2)]))
    (losses.policy - losses.entropy).sum().backward()
    assert logits.grad[0, 0, 2].item() == 0.0


def test_masked_mean_of_nothing_is_zero_even_beside_nan():
    x = torch.tensor([[1.0, 3.0, math.nan], [math.nan, math.nan, math.nan]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(x, mask).tolist() == [2.0, 0.0]


def test_latent_divergence_by_hand():
    target = torch.full((16,), 1 / 8)
    predicted = target.clone()
    predicted[::2] = torch.tensor([1 / 4] * 2 + [1 / 12] * 6)  # every second entry is a group
    one_group = 2 / 8 * math.log(4 / 8) + 6 / 8 * math.log(12 / 8)
    torch.testing.assert_close(latent_divergence(predicted, target).item(), one_group / 2)

"""Dormant units and logit ranges against models whose units were put to sleep by hand."""

from __future__ import annotations

import pytest
import torch

from learner.health import HealthWatch, logit_range
from learner.world_model import WorldModel, WorldModelConfig
from replay_service.segment import GameSpec

VECTOR = GameSpec((4,), "float32", n_actions=2)
IMAGE = GameSpec((1, 16, 16), "uint8", n_actions=2)
CONFIG = WorldModelConfig(embed_dim=16, n_heads=2, mlp_hidden=24, window_steps=2)


def watched(model: WorldModel, spec: GameSpec) -> float:
    shape = (12, *spec.stacked_shape)
    torch.manual_seed(1)
    obs = torch.randint(0, 255, shape).byte() if spec.is_image else torch.randn(shape)
    with HealthWatch(model) as watch, torch.no_grad():
        latents = model.encode(obs).unflatten(0, (3, 4))
        model.imagine(latents[:, :2], torch.randint(0, 2, (3, 4)))
    assert not any(module._forward_hooks for module in model.modules())
    return watch.dormant_share()


def n_hidden(spec: GameSpec) -> int:
    """The MLPs of the blocks, four heads, and the encoder's."""
    channels = CONFIG.encoder_channels
    encoder = channels // 2 + channels if spec.is_image else CONFIG.mlp_hidden
    return CONFIG.n_layers * CONFIG.mlp_ratio * CONFIG.embed_dim + 4 * CONFIG.mlp_hidden + encoder


@pytest.mark.parametrize("spec", [VECTOR, IMAGE], ids=["vector", "image"])
@pytest.mark.parametrize("n_asleep", [1, 5])
def test_units_whose_input_is_far_below_zero_are_dormant(spec, n_asleep):
    torch.manual_seed(0)
    model = WorldModel(CONFIG, spec)
    block = model.transformer.blocks[0]
    with torch.no_grad():
        block.mlp_out.weight[:, :n_asleep] = 0.0  # so that nothing else changes with these units
    before = watched(model, spec)
    with torch.no_grad():
        for linear in (block.mlp_in, model.policy_head[0]):
            linear.weight[:n_asleep] = 0.0
            linear.bias[:n_asleep] = -50.0
    assert before <= 1 / n_hidden(spec)  # a fresh network is awake
    assert watched(model, spec) - before == pytest.approx(2 * n_asleep / n_hidden(spec))


def test_a_layer_without_any_activity_is_all_dormant():
    torch.manual_seed(0)
    model = WorldModel(CONFIG, VECTOR)
    before = watched(model, VECTOR)
    with torch.no_grad():
        model.value_head[0].weight.zero_()
        model.value_head[0].bias.zero_()
    asleep = CONFIG.mlp_hidden / n_hidden(VECTOR)
    assert watched(model, VECTOR) - before == pytest.approx(asleep)


def test_logit_range_is_the_largest_within_one_position():
    assert logit_range(torch.tensor([[1.0, -2.0, 0.5], [9.0, 8.0, 8.5]])) == 3.0

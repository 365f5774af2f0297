"""How strongly an env actor explores: scaled by a call, it is what other settings would be."""

import numpy as np

from actors.acting import ActingConfig, ActorIdentity
from actors.env_actor import EnvActor
from actors.envs.config import EnvConfig
from actors.play_settings import PlaySettings
from actors.player import PlayerConfig
from actors.prior.config import PriorConfig
from actors.search import SearchConfig
from learner.weights import WeightStore
from learner.world_model import WorldModelConfig
from replay_service import TargetConfig


def played(exploration: float, *, temperature: float, fraction: float) -> np.ndarray:
    """Visit shares and actions of all segments."""
    player = PlayerConfig(
        env=EnvConfig(id="CartPole-v1"),
        search=SearchConfig(n_simulations=6, dirichlet_fraction=fraction),
        prior=PriorConfig(enabled=False),
        model=WorldModelConfig(embed_dim=16, n_heads=2, mlp_hidden=16, window_steps=2),
        discount=0.99,
        device="cpu",
    )
    acting = ActingConfig(envs_per_actor=2, segment_length=5, temperature=temperature)
    actor = EnvActor(
        player=player,
        acting=acting,
        targets=TargetConfig(),
        identity=ActorIdentity("run", 0, 0, seed=1),
        weight_source=WeightStore(),
        prior_transport=None,
        seat=None,
    )
    try:
        _, segments = actor.collect(60, 0, None, PlaySettings(exploration=exploration))
    finally:
        actor.close()
    assert segments
    return np.concatenate([np.append(s.policy.ravel(), s.action) for s in segments])


def test_temperature_and_noise_are_scaled_together():
    strong = played(2.0, temperature=1.0, fraction=0.25)
    np.testing.assert_array_equal(strong, played(1.0, temperature=2.0, fraction=0.5))
    plain = played(1.0, temperature=1.0, fraction=0.25)
    assert len(plain) != len(strong) or (plain != strong).any()


def test_the_largest_temperature_is_never_left():
    strong = played(100.0, temperature=1.0, fraction=1.0)
    np.testing.assert_array_equal(strong, played(1.0, temperature=10.0, fraction=1.0))
